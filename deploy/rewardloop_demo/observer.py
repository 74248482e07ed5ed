"""Measures each version that goes live: the reward model's accuracy, the policy's win rate, and how fresh they are.

It asks held-out questions through the public RPCs. Neither the users nor the training ever ask these questions.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from rewardloop_client import AsyncRewardloopClient, Generation, RewardloopError, ScoreGroup, VersionInfo
from rewardloop_demo.record import RoundRecord
from rewardloop_demo.taste import Interval, Taste, interval
from rewardloop_demo.users import Comparison, evaluate
from rewardloop_trainer.assessment.reward_models.bag_of_words import Preference, fit_bag_of_words

# With three candidates, most held-out prompts have a pair of different answers.
_CANDIDATES = 3
# While users ask, a new policy is compared on so many of the prompts, so that little of its time goes there.
_PROMPTS_BETWEEN = 200
# The live policy must not be asked with the starter's seed: the same answers would count as ties.
_LIVE_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, slots=True)
class HeldOutChoice:
    """One noisy choice between two of the starter's answers to a held-out prompt."""

    prompt: str
    chosen: str
    rejected: str


class Observer:
    """Measures live versions against the starter.

    Attributes:
        choices: The noisy choices that reward models are compared with. Empty before `begin`.
        ceiling: The accuracy on `choices` that no reward model exceeds except by luck. NaN before `begin`.
    """

    def __init__(self, client: AsyncRewardloopClient, taste: Taste, prompts: Sequence[str], seed: int) -> None:
        self._client = client
        self._taste = taste
        self._prompts = prompts
        self._seed = seed
        self._starter: list[Generation] = []
        self._right: dict[str, float] = {}
        self.choices: list[HeldOutChoice] = []
        self.ceiling = math.nan

    async def begin(self) -> None:
        """Ask the starter policy every prompt, and let the taste choose between its answers."""
        self._starter = await evaluate(self._client, self._prompts, k=_CANDIDATES, seed=self._seed)
        rng = random.Random(f"choices/{self._seed}")
        pairs = []
        for prompt, generation in zip(self._prompts, self._starter, strict=True):
            texts = list(dict.fromkeys(c.text for c in generation.candidates if c.text.strip()))
            for first, second in combinations(texts, 2):
                loser = self._taste.prefers(prompt, first, second, rng)
                both = (first, second)
                self.choices.append(HeldOutChoice(prompt, both[loser], both[1 - loser]))
                pairs.append((prompt, first, second))
        self.ceiling = self._taste.agreement_ceiling(pairs)

    async def measure(self, last: RoundRecord) -> RoundRecord | None:
        """Measure what went live since ``last``.

        Returns:
            The next record, with the figures of the new versions and NaN for what was not measured again; None if the
            versions of ``last`` are still live. ``seconds`` and ``signals`` are those of ``last``.
        """
        reward = (await self._client.get_version("reward")).version
        policy = (await self._client.get_version("policy")).version
        if (reward, policy) == (last.reward_version, last.policy_version):
            return None
        nan = math.nan
        now = replace(last, round=last.round + 1, win_rate=nan, win_low=nan, win_high=nan)
        now = replace(now, freshness_p50_s=nan, freshness_max_s=nan)
        now = replace(now, reward_change=nan, reward_change_low=nan, reward_change_high=nan)
        if reward != last.reward_version:
            found, change = await self.reward_accuracy()
            median, slowest = await self._freshness()
            now = replace(now, reward_version=reward, reward_swaps=last.reward_swaps + 1)
            now = replace(now, reward_accuracy=found.mean, reward_low=found.low, reward_high=found.high)
            if change is not None:
                now = replace(now, reward_change=change.mean)
                now = replace(now, reward_change_low=change.low, reward_change_high=change.high)
            now = replace(now, freshness_p50_s=median, freshness_max_s=slowest)
        if policy != last.policy_version:
            won = await self._win_rate(policy, _PROMPTS_BETWEEN, 1)
            now = replace(now, policy_version=policy, policy_swaps=last.policy_swaps + 1)
            now = replace(now, win_rate=won.mean, win_low=won.low, win_high=won.high)
            now = replace(now, win_prompts=min(_PROMPTS_BETWEEN, len(self._prompts)))
        return now

    async def measure_last(self, last: RoundRecord) -> RoundRecord | None:
        """Compare the policy of ``last`` once more, on all prompts and with several answers to each.

        Returns:
            The record with the new figures; None if another version went live before all had answered.
        """
        won = await self._win_rate(last.policy_version, len(self._prompts), _CANDIDATES)
        if (await self._client.get_version("policy")).version != last.policy_version:
            return None
        return replace(last, win_rate=won.mean, win_low=won.low, win_high=won.high, win_prompts=len(self._prompts))

    async def policy_metrics(self) -> Mapping[str, float]:
        """Return the metrics that the trainer measured of the live policy, by name."""
        return dict(_manifest(await self._client.get_version("policy")).get("metrics") or {})

    async def reward_accuracy(self) -> tuple[Interval, Interval | None]:
        """Share of the noisy choices that the live reward model agrees with. Each prompt counts alike.

        Returns:
            The share, and by how much it differs from that of the version measured before; None if there is none.
        """
        groups = [ScoreGroup(c.prompt, [c.chosen, c.rejected]) for c in self.choices]
        right: dict[str, list[float]] = {}
        outcomes = await self._client.score_batch(groups, timeout_s=60)
        for choice, outcome in zip(self.choices, outcomes, strict=True):
            if isinstance(outcome, RewardloopError):
                raise outcome
            right.setdefault(choice.prompt, []).append(outcome.scores[0].score > outcome.scores[1].score)
        shares = {prompt: sum(each) / len(each) for prompt, each in right.items()}
        changes = [share - self._right[prompt] for prompt, share in shares.items() if prompt in self._right]
        self._right = shares
        return interval(list(shares.values())), interval(changes) if changes else None

    def bag_of_words_accuracy(self, learned: Sequence[Comparison]) -> float:
        """The same share for a bag-of-words model that learned from the users' choices."""
        model = fit_bag_of_words([Preference(*each) for each in learned], seed=self._seed)
        of_prompt: dict[str, list[Preference]] = {}
        for choice in self.choices:
            pair = Preference(choice.prompt, choice.chosen, choice.rejected)
            of_prompt.setdefault(choice.prompt, []).append(pair)
        shares = [model.accuracy(pairs) for pairs in of_prompt.values()]
        return sum(shares) / len(shares) if shares else math.nan

    async def _win_rate(self, version: str, prompts: int, answers: int) -> Interval:
        """Win rate of a policy against the starter, on so many prompts and with so many answers to each.

        Every answer is compared with every answer of the starter. The interval is one over prompts.
        """
        asked = self._prompts[:prompts]
        seed = self._seed + _LIVE_SEED_OFFSET
        said = await evaluate(self._client, asked, k=answers, version=version, seed=seed)
        won = []
        for prompt, ours, theirs in zip(asked, said, self._starter, strict=False):
            pairs = [(a.text, b.text) for a in ours.candidates for b in theirs.candidates]
            wins = self._taste.wins([prompt] * len(pairs), *zip(*pairs, strict=True))
            won.append(sum(wins) / len(wins))
        return interval(won)

    async def _freshness(self) -> tuple[float, float]:
        """Median and greatest age, in seconds, of the signals that the live reward version was the first to learn."""
        data = _manifest(await self._client.get_version("reward")).get("data")
        if not data or not data["arrivals"]:
            return math.nan, math.nan
        ages = time.time() - np.asarray(data["arrivals"])
        return float(np.median(ages)), float(ages.max())


def _manifest(version: VersionInfo) -> dict[str, Any]:
    """The manifest of a version; empty if the server has none."""
    found: dict[str, Any] = json.loads(version.manifest_json or "{}")
    return found
