"""Weighs pairs so that the longer response wins half of their weight at every difference of length.

This is inverse propensity weighting: a pair's weight is divided by the share of its outcome (the longer or the shorter
response won) in the weight of the pairs of about the same length ratio. Then a model gains nothing from "longer is
better" alone.
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
    pairs = [r for r in records if isinstance(r, Pair)]
    ratios = [math.log((len(pair.chosen) + 1) / (len(pair.rejected) + 1)) for pair in pairs]
    weights = iter(length_weights(np.asarray(ratios), np.asarray([pair.weight for pair in pairs])).tolist())
    return [replace(r, weight=r.weight * next(weights)) if isinstance(r, Pair) else r for r in records]


def length_weights(
    log_ratios: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """0.5 divided by the share of each pair's outcome in its bin's weight.

    Bins are quantiles of the absolute log ratio, over the pairs that weigh something.

    Args:
        log_ratios: (n,), the log of the chosen response's length over the rejected one's.
        weights: (n,), at least 0, what each pair weighs before; all alike if None.

    Returns:
        (n,), at most ``MOST``; 1 at equal length and in a bin that has only one outcome.
    """
    before, found = np.ones(len(log_ratios)) if weights is None else weights, np.ones(len(log_ratios))
    distance = np.abs(log_ratios)
    heard = distance[before > 0]
    edges = np.quantile(heard, np.linspace(0, 1, BINS + 1)[1:-1]) if len(heard) else np.empty(0)
    bins = np.searchsorted(edges, distance, side="right")
    for each in range(BINS):
        longer_won = (bins == each) & (log_ratios > 0)
        shorter_won = (bins == each) & (log_ratios < 0)
        of_longer, of_shorter = float(before[longer_won].sum()), float(before[shorter_won].sum())
        if of_longer > 0 and of_shorter > 0:
            for outcome, share in ((longer_won, of_longer), (shorter_won, of_shorter)):
                found[outcome] = min(MOST, 0.5 * (of_longer + of_shorter) / share)
    return found
