"""Estimates a quantile from the buckets of a histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping


def quantile(counts: Mapping[float, float], share: float) -> float | None:
    """Return the estimate, linear within a bucket.

    Args:
        counts: How many observations are at most each bound; the last bound may be infinite.
        share: Share of the observations that are at most as large, in (0, 1].

    Returns:
        The estimate; the last finite bound if the quantile lies above it; None without observations.
    """
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] == 0:
        return None
    rank = share * counts[bounds[-1]]
    below, lower = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank:
            if math.isinf(bound):
                return lower
            inside = counts[bound] - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
        below, lower = counts[bound], bound
    return lower
