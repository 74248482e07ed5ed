"""The figures that a demo measures, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The lower end of the policy's win rate should be above this.
GOAL = 0.65


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """The versions that were live when a round ended, and how good they were. Round 0 is the start.

    Figures that were not measured in a round are NaN.

    Attributes:
        round: Its number.
        seconds: Time since the demo's start.
        signals: Signals recorded so far.
        reward_version: The live reward model.
        reward_accuracy: Share of the noisy held-out choices that this reward model agrees with, each prompt alike.
        reward_low: Lower end of its 95% interval.
        reward_high: Upper end of its 95% interval.
        reward_change: Its accuracy less that of the version before it, on the same choices.
        reward_change_low: Lower end of the change's 95% interval.
        reward_change_high: Upper end of the change's 95% interval.
        policy_version: The live policy.
        win_rate: Share of the held-out prompts at which the hidden taste likes this policy better than the starter.
        win_low: Lower end of the win rate's 95% interval.
        win_high: Upper end of the win rate's 95% interval.
        win_prompts: Number of prompts of the win rate.
        reward_swaps: Reward versions that went live so far.
        policy_swaps: Policy versions that went live so far.
        freshness_p50_s: Median time from a signal's arrival to the first request that a model served which had
            learned from it.
        freshness_max_s: The longest such time.
    """

    round: int
    seconds: float
    signals: int
    reward_version: str
    reward_accuracy: float
    policy_version: str
    win_rate: float = math.nan
    win_low: float = math.nan
    win_high: float = math.nan
    reward_swaps: int = 0
    policy_swaps: int = 0
    freshness_p50_s: float = math.nan
    freshness_max_s: float = math.nan
    reward_low: float = math.nan
    reward_high: float = math.nan
    reward_change: float = math.nan
    reward_change_low: float = math.nan
    reward_change_high: float = math.nan
    win_prompts: int = 0


@dataclass(frozen=True, slots=True)
class FruitlessRound:
    """A round of the trainer after which the live version stayed.

    Attributes:
        model: "reward" or "policy".
        number: Its number among the model's rounds.
        outcome: "refused" by its gate, or "failed".
        seconds: When it ended, since the demo's start.
        signals: Signals recorded by then.
        reasons: Why.
    """

    model: str
    number: int
    outcome: str
    seconds: float
    signals: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyJudge:
    """The judge that decided which policies may go live.

    Attributes:
        is_own: Whether it is a reward model of its own. Otherwise the live reward model decided.
        signals: Signals that taught it and nothing else.
        accuracy: Share of the held-out choices of users that its own reward model agrees with, as the trainer measured
            it for the last policy. NaN if that was not measured.
        accuracy_lower: Lower bound of this share, at 95%.
    """

    is_own: bool
    signals: int = 0
    accuracy: float = math.nan
    accuracy_lower: float = math.nan


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """A whole demo.

    Attributes:
        seed: Of the starter models, the users and their taste.
        rounds: One record for each change of the live versions, and one for the start.
        starter_accuracy: The starter's accuracy on the same held-out choices as the rounds' accuracies.
        accuracy_ceiling: The accuracy on them that the choices' noise allows.
        held_out_pairs: Number of held-out choices.
        held_out_prompts: Number of held-out prompts.
        signal_kinds: Acknowledged signals by kind.
        seconds: Duration.
        peak_memory_gib: The largest resident memory of all processes together.
        failed_requests: Calls of users that the server refused.
        algorithm: The algorithm by which the policy learned.
        bag_of_words_accuracy: The accuracy of a bag-of-words model on the held-out choices, after all users' choices.
        fruitless: The rounds after which the live version stayed.
        judge: Who judged policies; None if no policy was judged.
        cpu_seconds: CPU time of all processes together.
    """

    seed: int
    rounds: tuple[RoundRecord, ...]
    starter_accuracy: float
    accuracy_ceiling: float
    held_out_pairs: int
    held_out_prompts: int
    signal_kinds: dict[str, int]
    seconds: float
    peak_memory_gib: float = math.nan
    failed_requests: int = 0
    algorithm: str = "dpo"
    bag_of_words_accuracy: float = math.nan
    fruitless: tuple[FruitlessRound, ...] = ()
    judge: PolicyJudge | None = None
    cpu_seconds: float = math.nan


def series(rounds: Sequence[RoundRecord], name: str) -> tuple[list[int], list[float]]:
    """The rounds in which a figure was measured, as their numbers of signals and the figure's values."""
    found = [(r.signals, float(getattr(r, name))) for r in rounds]
    kept = [(x, y) for x, y in found if not math.isnan(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def algorithm_name(demo: DemoRecord) -> str:
    """The name of a demo's algorithm as it is written, such as PPO or online DPO."""
    *before, last = demo.algorithm.split("-")
    return " ".join([*before, last.upper()])
