"""From the scoring service's rewards to what an algorithm learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewardloop_trainer.policy.online_settings import RewardShaping
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout


@dataclass(slots=True)
class Moments:
    """Running mean and deviation of one reward version's scores (Welford 1962)."""

    version: str = ""
    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        change = value - self.mean
        self.mean += change / self.count
        self.squares += change * (value - self.mean)

    @property
    def deviation(self) -> float:
        """1 while there are too few values to say."""
        return math.sqrt(self.squares / self.count) if self.count > 1 and self.squares > 0 else 1.0


@dataclass(slots=True)
class Shaping:
    """Keeps the running statistics of a run; they begin anew when another reward version scores."""

    settings: RewardShaping
    moments: Moments = field(default_factory=Moments)

    def shape(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[Reward | None]]
    ) -> list[list[float]]:
        """One reward for each rollout, in their order."""
        pessimistic = [
            [self.settings.empty_score if r is None else r.pessimistic(self.settings.caution) for r in group]
            for group in rewards
        ]
        if self.settings.normalise:
            # Statistics of what was really scored; within a step the newest version counts.
            for group, values in zip(rewards, pessimistic, strict=True):
                for reward, value in zip(group, values, strict=True):
                    if reward is not None:
                        if reward.version != self.moments.version:
                            self.moments = Moments(reward.version)
                        self.moments.add(value)
            mean, deviation = self.moments.mean, self.moments.deviation
            pessimistic = [[(value - mean) / deviation for value in group] for group in pessimistic]
        return [
            [
                value - self.settings.missing_end_penalty * (rollout.finish == "length")
                for rollout, value in zip(said, values, strict=True)
            ]
            for said, values in zip(groups, pessimistic, strict=True)
        ]

    def numbers(self) -> Mapping[str, float]:
        """For a checkpoint."""
        return {f"moments.{name}": getattr(self.moments, name) for name in ("count", "mean", "squares")}

    def restore(self, version: str, numbers: Mapping[str, float]) -> None:
        """From a checkpoint."""
        names = ("count", "mean", "squares")
        self.moments = Moments(version, *(numbers[f"moments.{name}"] for name in names))
