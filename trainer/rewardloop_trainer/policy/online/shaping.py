"""Turns the scores of the scoring service into the rewards that an algorithm learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewardloop_trainer.policy.online_settings import RewardShaping
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout


@dataclass(slots=True)
class Moments:
    """Running mean and deviation of the scores of one reward version. Source: Welford 1962."""

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
        """The standard deviation; 1 as long as it cannot be estimated."""
        return math.sqrt(self.squares / self.count) if self.count > 1 and self.squares > 0 else 1.0


@dataclass(slots=True)
class Shaping:
    """Shapes the rewards of one run and keeps its running statistics.

    The statistics begin anew when another reward version scores, since its scores may have another scale.
    """

    settings: RewardShaping
    moments: Moments = field(default_factory=Moments)

    def shape(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[Reward | None]]
    ) -> list[list[float]]:
        """The reward of each rollout, in the order of the rollouts.

        Args:
            groups: The rollouts of each prompt.
            rewards: What the scoring service says of each; None for an empty response.
        """
        pessimistic = [
            [self.settings.empty_score if r is None else r.pessimistic(self.settings.caution) for r in group]
            for group in rewards
        ]
        if self.settings.normalise:
            # Empty responses were not scored and do not count. If versions change within a step, the last one counts.
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
        """The statistics, for a checkpoint."""
        return {f"moments.{name}": getattr(self.moments, name) for name in ("count", "mean", "squares")}

    def restore(self, version: str, numbers: Mapping[str, float]) -> None:
        """Take the statistics of reward version ``version`` from a checkpoint."""
        names = ("count", "mean", "squares")
        self.moments = Moments(version, *(numbers[f"moments.{name}"] for name in names))
