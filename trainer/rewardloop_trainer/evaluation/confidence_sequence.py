"""Bounds for a mean that are valid at every look, whenever the looking stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.reward.evaluate import Floats

_Bools: TypeAlias = npt.NDArray[np.bool_]
_STEPS = 200
_STAKES = np.array([0.1, 0.2, 0.4, 0.8])


@dataclass(frozen=True, slots=True)
class Bounds:
    """Every mean up to and including ``lower`` is excluded, and every mean from ``upper`` on.

    A lower bound of 0 and an upper bound of 1 exclude nothing.
    """

    lower: float
    upper: float


def bounds_of(values: Sequence[float], alpha: float = 0.05) -> Bounds:
    """Return bounds of the mean of values in [0, 1], valid at every count of values at once.

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
    (Ville's inequality). An m whose capital reaches it is excluded. K+ falls and K- rises with m, so the means that are
    left form an interval. Fixed stakes tell a coin of 0.6 from 0.5 in fewer values than stakes that adapt to the
    variance.

    Candidate means lie on a grid of steps of 1/200, and the bounds are rounded outwards to it.

    Args:
        values: The values.
        alpha: The probability that the mean is ever outside the bounds.

    Raises:
        ValueError: If ``alpha`` is not between 0 and 1, or a value is not in [0, 1].
    """
    above, below = _is_exceeded(values, np.arange(1, _STEPS) / _STEPS, alpha)
    return Bounds(int(above.sum()) / _STEPS, (_STEPS - int(below.sum())) / _STEPS)


def exceeds(values: Sequence[float], mean: float, alpha: float = 0.05) -> tuple[bool, bool]:
    """Say whether the values' mean is shown to be above ``mean``, and whether below it, in the sense of `bounds_of`."""
    above, below = _is_exceeded(values, np.array([mean]), alpha)
    return bool(above[0]), bool(below[0])


def _is_exceeded(values: Sequence[float], means: Floats, alpha: float) -> tuple[_Bools, _Bools]:
    """For each mean, whether each gambler's capital has reached 2 / alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} is not between 0 and 1")
    x = np.asarray(values, dtype=np.float64)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"{x[~((x >= 0) & (x <= 1))][0]} is not in [0, 1]")
    threshold = math.log(2 / alpha)
    return _log_capital(x, means) >= threshold, _log_capital(1 - x, 1 - means) >= threshold


def _log_capital(x: Floats, means: Floats) -> Floats:
    """The logarithm of K+ for each mean, which does not overflow however many values there are."""
    odds = x[None, :] / means[:, None] - 1
    logs = np.stack([np.log1p(stake * odds).sum(axis=1) for stake in _STAKES])
    capital: Floats = np.logaddexp.reduce(logs, axis=0) - math.log(len(_STAKES))
    return capital
