"""What a demo measured, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The win rate that the policy's interval should lie above.
GOAL = 0.60


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What was live when a round ended, and how good it was; round 0 is the start.

    ``reward_accuracy``: share of noisy held-out choices that the reward model of ``reward_version`` agrees with.
    ``win_rate`` (``win_low``..``win_high``: its 95% interval): held-out prompts at which the policy of
    ``policy_version`` was liked better than the starter, by the hidden taste. ``reward_swaps`` and
    ``policy_swaps``: so far. ``freshness_p50_s``, ``freshness_max_s``: seconds from a signal's arrival to the first
    request served by a model that learned from it. NaN: not measured in this round.
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


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """A whole demo. ``starter_accuracy`` and ``accuracy_ceiling`` (what the noise of the choices allows) are on the
    same held-out choices as the rounds' accuracies. ``signal_kinds``: acknowledged signals by kind.
    ``peak_memory_gib``: largest sum over all processes. ``algorithm``: by which the policy learned."""

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


def series(rounds: Sequence[RoundRecord], name: str) -> tuple[list[int], list[float]]:
    """Signals and values of the rounds in which this was measured."""
    found = [(r.signals, float(getattr(r, name))) for r in rounds]
    kept = [(x, y) for x, y in found if not math.isnan(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def algorithm_name(demo: DemoRecord) -> str:
    """As it is written: PPO, online DPO."""
    *before, last = demo.algorithm.split("-")
    return " ".join([*before, last.upper()])
