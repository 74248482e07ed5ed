"""A test of a win rate that looks at the prompts part by part and ends as soon as they decide.

The boundary is O'Brien and Fleming's (1979): early looks need overwhelming evidence, so that the last one needs hardly
more than a single test of all prompts would. A confidence sequence, which holds for any number of values without a
plan, would need nearly twice as many prompts for the same power; here the number of prompts is known beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np

from rewardloop_trainer.clusters import ClusteredShare
from rewardloop_trainer.reward.evaluate import Floats

Decision = Literal["better", "worse", "open"]

_LOOKS = 5
_LEAST_OF_LOOK = 20
# A candidate that has not won half of the prompts by then has hardly any chance left.
_FUTILE_FROM = 0.5
_GRID = 401


@dataclass(frozen=True, slots=True)
class Look:
    """What the prompts so far say: the mean with bounds that hold at every look together, and what is decided."""

    mean: float
    lower: float
    upper: float
    decision: Decision


@dataclass(frozen=True, slots=True)
class WinRatePlan:
    """How many prompts there are, and how certain a decision must be.

    Attributes:
        prompts: How many prompts may be asked.
        threshold: The win rate that the candidate's must exceed.
        alpha: The probability with which a candidate whose win rate is only the threshold is called better.
    """

    prompts: int
    threshold: float
    alpha: float

    @property
    def ends(self) -> list[int]:
        """The number of prompts at each look, the last one being all of them."""
        looks = max(1, min(_LOOKS, self.prompts // _LEAST_OF_LOOK))
        return [round(self.prompts * (i + 1) / looks) for i in range(looks)]

    def look(self, wins: Floats) -> Look:
        """Return what the shares won of the prompts so far say, (n,), each in [0, 1] and n one of ``ends``."""
        n, looks = len(wins), len(self.ends)
        mean = float(wins.mean())
        if n < 2:
            return Look(mean, 0.0, 1.0, "open")
        z = obrien_fleming(self.alpha, looks) * math.sqrt(self.prompts / n)
        share = ClusteredShare(mean, float(wins.std(ddof=1)) / math.sqrt(n), n)
        alpha = 1 - NormalDist().cdf(z)
        lower, upper = share.lower(alpha), share.upper(alpha)
        if lower > self.threshold:
            return Look(mean, lower, upper, "better")
        is_futile = n >= _FUTILE_FROM * self.prompts and mean <= self.threshold
        return Look(mean, lower, upper, "worse" if upper < self.threshold or is_futile else "open")


@lru_cache
def obrien_fleming(alpha: float, looks: int) -> float:
    """Return c such that a standard normal walk crosses c sqrt(looks) within ``looks`` steps with probability alpha.

    The candidate is better at look k of K if its z exceeds c sqrt(K / k). With one look c is the normal quantile.
    """
    low, high = NormalDist().inv_cdf(1 - alpha) - 1e-9, NormalDist().inv_cdf(1 - alpha / looks) + 1e-9
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _crossing(middle * math.sqrt(looks), looks) > alpha else (low, middle)
    return (low + high) / 2


def _crossing(height: float, looks: int) -> float:
    """The probability that a walk of ``looks`` standard normal steps is ever above ``height``."""
    places = np.linspace(-8 * math.sqrt(looks), height, _GRID)
    width = places[1] - places[0]
    step = np.exp(-((places[:, None] - places[None, :]) ** 2) / 2) / math.sqrt(2 * math.pi)
    weights = np.full(_GRID, width)
    weights[[0, -1]] /= 2
    inside = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    for _ in range(looks - 1):
        inside = step @ (weights * inside)
    return 1 - float(weights @ inside)
