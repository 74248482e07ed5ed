"""Probabilities of rare events, by which a person is flagged."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """Return the probability of at least so many successes in independent trials that succeed with this probability."""
    if successes <= 0:
        return 1.0
    if not 0 < share < 1:
        return float(share >= 1)
    k = np.arange(successes, trials + 1)
    choose = math.lgamma(trials + 1) - _lgamma(k + 1) - _lgamma(trials - k + 1)
    logs = choose + k * math.log(share) + (trials - k) * math.log1p(-share)
    most = float(logs.max())
    return min(1.0, math.exp(most + math.log(float(np.exp(logs - most).sum()))))


def poisson_tail(count: int, mean: float) -> float:
    """Return the probability of at least so many events, if they are independent and so many are expected."""
    if count <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    last = count + int(10 * math.sqrt(max(mean, count))) + 10
    k = np.arange(count, last + 1)
    logs = k * math.log(mean) - mean - _lgamma(k + 1)
    most = float(logs.max())
    return min(1.0, math.exp(most + math.log(float(np.exp(logs - most).sum()))))


def least_trials(share: float, probability: float) -> int:
    """Return the fewest trials that can all succeed with at most this probability: below it nothing is decided."""
    return math.ceil(math.log(probability) / math.log(share))


def _lgamma(values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.array([math.lgamma(value) for value in values.tolist()])
