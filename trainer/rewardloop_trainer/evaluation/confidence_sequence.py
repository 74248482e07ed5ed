"""An interval for a mean that is valid at every look, whenever the looking stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEPS = 200
_STAKES = np.array([[0.1], [0.2], [0.4], [0.8]])
# Capital is capped here, far above every threshold, so that it does not overflow.
_MOST_CAPITAL = 1e300


@dataclass(frozen=True, slots=True)
class Bounds:
    """Every mean up to and including ``lower`` is excluded, and every mean from ``upper`` on.

    A lower bound of 0 and an upper bound of 1 exclude nothing.
    """

    lower: float
    upper: float


class ConfidenceSequence:
    """Bounds of the mean of values in [0, 1], valid at every count of values at once.

    With probability at least 1 - ``alpha``, the mean lies within the bounds after the first value, after the second,
    and so on for ever. Sampling may therefore stop as soon as the bounds decide, which an interval for a fixed number
    of values does not allow. The mean is each value's expectation given the values before it, so values need not be
    independent. They may lie anywhere in [0, 1]; a tie is 0.5.

    The method is hedged capital by betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
    variables by betting", theorem 3, with a grid of stakes as in section B.6). For each candidate mean m, one gambler
    bets that values exceed m and another bets that they fall short of it. Each spreads the capital evenly over the
    stakes g:

        K+(m) = mean over g of prod (1 + g (x / m - 1)),   K-(m) = mean over g of prod (1 + g ((1 - x) / (1 - m) - 1))

    If m is the mean, neither capital grows in expectation, so either reaches 2 / alpha with probability at most alpha
    (Ville's inequality). An m whose capital reaches it is excluded for good. K+ falls and K- rises with m, so the
    means that are left form an interval. Fixed stakes tell a coin of 0.6 from 0.5 in fewer values than stakes that
    adapt to the variance.

    Candidate means lie on a grid of steps of 1/200, and the bounds are rounded outwards to it.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha} is not between 0 and 1")
        self._threshold = 2 / alpha
        self._means = np.arange(1, _STEPS) / _STEPS
        # Capital, (stakes, means).
        self._above = np.ones((len(_STAKES), len(self._means)))
        self._below = np.ones_like(self._above)
        self._bounds = Bounds(0.0, 1.0)
        self._count = 0
        self._sum = 0.0

    @property
    def count(self) -> int:
        return self._count

    @property
    def mean(self) -> float:
        """The mean of the values so far; 0.5 before the first."""
        return self._sum / self._count if self._count else 0.5

    @property
    def bounds(self) -> Bounds:
        return self._bounds

    def add(self, value: float) -> Bounds:
        """Add a value and return the new bounds. Raises ValueError if the value is not in [0, 1]."""
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not in [0, 1]")
        self._count += 1
        self._sum += value
        self._above *= 1 + _STAKES * (value / self._means - 1)
        self._below *= 1 + _STAKES * ((1 - value) / (1 - self._means) - 1)
        for capital in (self._above, self._below):
            np.minimum(capital, _MOST_CAPITAL, out=capital)
        lowest = int(np.count_nonzero(self._above.mean(axis=0) >= self._threshold))
        highest = int(np.count_nonzero(self._below.mean(axis=0) >= self._threshold))
        self._bounds = Bounds(
            max(self._bounds.lower, lowest / _STEPS), min(self._bounds.upper, (_STEPS - highest) / _STEPS)
        )
        return self._bounds
