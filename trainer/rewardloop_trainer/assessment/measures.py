"""Figures with their intervals, as reports show them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from rewardloop_trainer.clusters import (
    ClusteredDifference,
    ClusteredMean,
    ClusteredShare,
    Ints,
    as_difference,
    as_share,
    clustered_mean,
)
from rewardloop_trainer.reports.parts import Measured
from rewardloop_trainer.reward.evaluate import Floats

# Each bound of a 95% interval is wrong with this probability.
ALPHA = 0.025


def measured(mean: ClusteredMean) -> Measured:
    """Return a mean with the bounds of its 95% interval."""
    return Measured(mean.mean, mean.lower(ALPHA), mean.upper(ALPHA))


def mean_of(values: Floats, clusters: Ints) -> ClusteredMean:
    """Return the mean of values on any scale, (n,), whose clusters are given; NaN without any."""
    return clustered_mean(values, np.ones(len(values)), clusters)


def share_of(values: Floats, clusters: Ints) -> ClusteredShare:
    """Return the mean of values in [0, 1], (n,), whose clusters are given; NaN without any."""
    return as_share(mean_of(values, clusters))


def difference_of(values: Floats, clusters: Ints) -> ClusteredDifference:
    """Return the mean of differences between shares, (n,), whose clusters are given; NaN without any."""
    return as_difference(mean_of(values, clusters))


def named(name: str, mean: ClusteredMean) -> dict[str, float]:
    """Return a mean and its bounds as figures of a report or a manifest; what is not finite is left out."""
    found = measured(mean)
    return finite({name: found.value, f"{name}_lower": found.lower, f"{name}_upper": found.upper})


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
