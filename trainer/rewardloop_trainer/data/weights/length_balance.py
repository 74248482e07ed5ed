"""Weighs pairs so that the longer response wins half of them at every difference of length.

This is inverse propensity weighting: a pair's weight is divided by the share of its outcome (the longer or the shorter
response won) among pairs of about the same length ratio. Then a model gains nothing from "longer is better" alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.data.preferences import Pair, Record

BINS = 10
MOST = 5.0


def balance_length(records: Sequence[Record]) -> list[Record]:
    """Return the records in their order, with the weights of pairs multiplied by `length_weights`."""
    ratios = [math.log((len(r.chosen) + 1) / (len(r.rejected) + 1)) for r in records if isinstance(r, Pair)]
    weights = iter(length_weights(np.asarray(ratios)).tolist())
    return [replace(r, weight=r.weight * next(weights)) if isinstance(r, Pair) else r for r in records]


def length_weights(log_ratios: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """0.5 divided by the share of each pair's outcome in its bin; bins are quantiles of the absolute log ratio.

    Args:
        log_ratios: (n,), the log of the chosen response's length over the rejected one's.

    Returns:
        (n,), at most ``MOST``; 1 at equal length and in a bin that has only one outcome.
    """
    weights = np.ones(len(log_ratios))
    distance = np.abs(log_ratios)
    edges = np.quantile(distance, np.linspace(0, 1, BINS + 1)[1:-1]) if len(log_ratios) else np.empty(0)
    bins = np.searchsorted(edges, distance, side="right")
    for each in range(BINS):
        longer_won = (bins == each) & (log_ratios > 0)
        shorter_won = (bins == each) & (log_ratios < 0)
        total = longer_won.sum() + shorter_won.sum()
        for outcome in (longer_won, shorter_won):
            if 0 < outcome.sum() < total:
                weights[outcome] = min(MOST, 0.5 * total / outcome.sum())
    return weights
