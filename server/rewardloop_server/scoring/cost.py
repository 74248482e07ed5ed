"""cost: how long a run takes, by three constants that are fitted on the machine that will run it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_server.calls.vocabulary import CostTerm

# Handing a run to the engine and taking its logits costs this much on any machine. A fit on a noisy machine must not
# give less, because the planner would cut runs without a fixed cost down to single rows.
_LEAST_FIXED_S = 1e-4


@dataclass(frozen=True, slots=True)
class CostModel:
    """The seconds of a run, by its rows and the tokens to which they are padded.

    They are ``fixed_s + per_token_s * rows * length + per_token2_s * rows * length**2``, in which ``per_token_s`` is
    the work of the linear layers and ``per_token2_s`` that of attention.
    """

    fixed_s: float
    per_token_s: float
    per_token2_s: float

    def terms(self) -> dict[CostTerm, float]:
        """Return the constants by the names under which metrics show them."""
        return {"fixed": self.fixed_s, "per_token": self.per_token_s, "per_token2": self.per_token2_s}

    def run_s(self, rows: int, length: int) -> float:
        """Return the seconds of a run of ``rows`` rows, padded to ``length`` tokens."""
        return self.fixed_s + rows * self.row_s(length)

    def row_s(self, length: int) -> float:
        """Return the seconds that one more row of ``length`` tokens adds to a run of that length."""
        return length * (self.per_token_s + self.per_token2_s * length)

    def longest(self, limit_s: float) -> float:
        """Return the most tokens with which a run of one row takes at most ``limit_s`` seconds. May be infinite."""
        left = limit_s - self.fixed_s
        if left <= 0:
            return 0.0
        if math.isinf(left) or not (self.per_token_s or self.per_token2_s):
            return math.inf
        # The positive root of per_token2 * n**2 + per_token * n - left, in a form that is stable near per_token2 = 0.
        root = math.sqrt(self.per_token_s**2 + 4 * self.per_token2_s * left)
        return 2 * left / (self.per_token_s + root)


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed run of ``rows`` rows, padded to ``length`` tokens."""

    rows: int
    length: int
    seconds: float


def fit(timings: Sequence[Timing]) -> CostModel:
    """Return the constants, none below zero, with the least sum of squared relative errors over the timings.

    The errors are relative so that a short run weighs as much as a long one. Raises ValueError if no timing is above
    zero.
    """
    usable = [t for t in timings if t.seconds > 0]
    if not usable:
        raise ValueError("no timing to fit a cost model to")
    terms = np.array([(1.0, t.rows * t.length, t.rows * t.length**2) for t in usable])
    relative = terms / np.array([[t.seconds] for t in usable])
    scale = relative.max(axis=0)
    # Non-negative least squares with three unknowns. Each of the seven sets of constants that may be above zero is
    # fitted by plain least squares, and the best fit without a negative constant is taken.
    best, least = np.zeros(3), math.inf
    for size in (1, 2, 3):
        for chosen in map(list, itertools.combinations(range(3), size)):
            found = np.linalg.lstsq(relative[:, chosen] / scale[chosen], np.ones(len(usable)), rcond=None)[0]
            if (found < 0).any():
                continue
            constants = np.zeros(3)
            constants[chosen] = found / scale[chosen]
            error = float(np.square(relative @ constants - 1).sum())
            if error < least - 1e-12:
                best, least = constants, error
    return CostModel(max(float(best[0]), _LEAST_FIXED_S), float(best[1]), float(best[2]))


def worst_error(model: CostModel, timings: Sequence[Timing]) -> float:
    """Return the largest relative error of the model over the timings."""
    return max(abs(model.run_s(t.rows, t.length) / t.seconds - 1) for t in timings if t.seconds > 0)
