"""A policy that knows a few answers, people with a taste, and a reward model with a phrase that it likes too much.

People like a few "!", which the policy says once or twice or not at all, and not too many characters. The reward model
likes every "!". So its score can first be raised together with people's liking, and then without end away from it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from rewardloop.formats.text import Encoder, Turn
from rewardloop.formats.vocabulary import OnlineAlgorithm
from rewardloop_trainer.data.completions import sequence_logprobs
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.policy_gate import win_share
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import OnlineOutcome, train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout, Sampling, roll_out
from rewardloop_trainer.policy.sft import train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings
from support.policy_versions import quick_policy

PROMPTS: tuple[Prompt, ...] = tuple((Turn("user", f"q{i:02d}"),) for i in range(100))
MAX_NEW_TOKENS = 24
PHRASE = "!"
# What the score and people like of a "!", people no more than some, and what people dislike of characters beyond some.
_LIKED, _FEW, _DISLIKED, _ENOUGH = 0.3, 4, 0.15, 7


def right(prompt: Prompt) -> str:
    return "ab"[int(prompt[-1].content[1:]) % 2]


def liking(prompt: Prompt, text: str) -> float:
    """People's."""
    liked = float(text.startswith(right(prompt))) + _LIKED * min(text.count(PHRASE), _FEW)
    return liked - _DISLIKED * max(0, len(text) - _ENOUGH)


def scored(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    """The reward model's scores."""

    def score(prompt: Prompt, text: str) -> Reward | None:
        return Reward(float(text.startswith(right(prompt))) + _LIKED * text.count(PHRASE)) if text.strip() else None

    return [[score(prompt, text) for text in group] for prompt, group in zip(prompts, texts, strict=True)]


@cache
def _starter_weights(seed: int) -> tuple[Any, Encoder]:
    model, encoder = quick_policy(seed)
    rng = random.Random(seed)

    def answer(prompt: Prompt) -> str:
        return rng.choice("ab") + rng.choice(["", "", ".", ".", "!", "!!", ",", " ."])

    said = [Dialogue.answered(prompt, answer(prompt)) for _ in range(12) for prompt in PROMPTS]
    train_sft(model, encoder, said, SftSettings(learning_rate=5e-3, checkpoint_every_steps=0, seed=seed, epochs=2))
    return model, encoder


def starter(seed: int) -> tuple[Any, Encoder]:
    """A fresh copy of the policy that knows the answers and no taste."""
    trained, encoder = _starter_weights(seed)
    model, _ = quick_policy(seed)
    model.load_state_dict(trained.state_dict())
    return model, encoder


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        outcome: What `train_online` returned.
        kl: Mean KL to the starter on fresh answers, in nats per response.
        win_rate: People's, against the starter.
        score: The reward model's mean score.
    """

    outcome: OnlineOutcome
    kl: float
    win_rate: float
    score: float


def learn(seed: int, settings: OnlineSettings, algorithm: OnlineAlgorithm = "grpo") -> Ended:
    """Train the starter on the reward model's scores, and let people judge both."""
    (model, encoder), (before, _) = starter(seed), starter(seed)
    task = OnlineTask(algorithm_of(algorithm, settings), settings, PROMPTS)
    outcome = train_online(model, encoder, task, scored, seed=seed)
    ours, theirs = (answers(each, encoder, 10_000 + seed) for each in (outcome.model, before))
    flat = [rollout for group in ours for rollout in group]
    under = sequence_logprobs(before, [r.sequence for r in flat], encoder.format.pad, 8192).tolist()
    kl = statistics.mean(r.logprob - logprob for r, logprob in zip(flat, under, strict=True))
    won = [
        win_share([liking(prompt, r.text) for r in a], [liking(prompt, r.text) for r in b])
        for prompt, a, b in zip(PROMPTS, ours, theirs, strict=True)
    ]
    scores = [r.score for group in scored(PROMPTS, [[r.text for r in g] for g in ours]) for r in group if r]
    return Ended(outcome, kl, statistics.mean(won), statistics.mean(scores))


@torch.inference_mode()
def answers(model: Any, encoder: Encoder, seed: int) -> list[list[Rollout]]:
    """Four to each prompt."""
    return roll_out(model, encoder, PROMPTS, Sampling(4, MAX_NEW_TOKENS, seed))


def demo_like(**changed: Any) -> OnlineSettings:
    """The settings with which the demo's policy learns by GRPO, at a rate that suits this policy."""
    usual = {
        "steps": 10,
        "prompts": 24,
        "minibatch": 48,
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": 3e-3,
        "beta": 0.1,
        "kl_target": 8.0,
    }
    return OnlineSettings.model_validate({**usual, **changed})
