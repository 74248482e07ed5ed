"""The mean of values that come in clusters, such as the judgements of one prompt, with bounds that respect them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

_LEAST_FREEDOM = 2.0
_ROUNDING = 1e-9  # an error below it is 0, but for rounding
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """A weighted mean with its standard error.

    Attributes:
        mean: The mean; NaN without values.
        error: Its standard error over clusters; infinite with fewer than two clusters.
        clusters: The effective number of clusters, (sum of weights)^2 / sum of squared weights, with a cluster's weight
            being the sum over its values. One cluster that outweighs all others makes it 1.
    """

    mean: float
    error: float
    clusters: float

    def lower(self, alpha: float) -> float:
        """The bound that the true mean is below with probability at most ``alpha``, by Student's t."""
        return self.mean - self._reach(alpha)

    def upper(self, alpha: float) -> float:
        """The bound that the true mean is above with probability at most ``alpha``, by Student's t."""
        return self.mean + self._reach(alpha)

    def _reach(self, alpha: float) -> float:
        return self._quantile(alpha) * self.error

    def _quantile(self, alpha: float) -> float:
        return t_quantile(1 - alpha, max(self.clusters - 1, _LEAST_FREEDOM))


@dataclass(frozen=True, slots=True)
class ClusteredShare(ClusteredMean):
    """The mean of values in [0, 1], such as an accuracy or a win rate. Its bounds stay within 0 and 1.

    Each bound is the one of two that is farther from the mean: that of `ClusteredMean`, which covers too little close
    to 0 and 1, and Wilson's (1927) with p the mean, n the independent cases that would have its error, and t for z:

        (p + t^2 / 2n -+ t sqrt(p (1 - p) / n + t^2 / 4n^2)) / (1 + t^2 / n),  n = p (1 - p) / error^2.

    If no value differs from the others, each cluster is one case. If all values are 1, the lower bound is the exact one
    of Clopper and Pearson (1934), alpha^(1 / clusters): the share of which so many clusters show nothing else with
    probability alpha. If all are 0, the upper bound is 1 less that.
    """

    def lower(self, alpha: float) -> float:
        """The bound that the true share is below with probability at most about ``alpha``; NaN without values."""
        return (
            math.nan
            if math.isnan(self.mean)
            else max(0.0, min(self.mean - self._reach(alpha), self._within(alpha, -1)))
        )

    def upper(self, alpha: float) -> float:
        """The bound that the true share is above with probability at most about ``alpha``; NaN without values."""
        return (
            math.nan if math.isnan(self.mean) else min(1.0, max(self.mean + self._reach(alpha), self._within(alpha, 1)))
        )

    def _within(self, alpha: float, side: int) -> float:
        """Return Wilson's bound below the mean (side -1) or above it (1), or the exact one."""
        p, t = self.mean, self._quantile(alpha)
        variance = p * (1 - p)
        if self.error <= _ROUNDING and variance <= _ROUNDING:
            return p + side * unseen_share(alpha, self.clusters)
        cases = variance / self.error**2 if self.error > _ROUNDING and variance > 0 else self.clusters
        # Multiplied by n, so that no case at all gives the bounds 0 and 1.
        return (p * cases + t**2 / 2 + side * t * math.sqrt(max(variance, 0.0) * cases + t**2 / 4)) / (cases + t**2)


@dataclass(frozen=True, slots=True)
class ClusteredDifference(ClusteredMean):
    """The mean of differences between values in [0, 1], such as of two accuracies. Its bounds stay within -1 and 1.

    If no value differs from the others, other clusters may still: as large a share of them as may not have been seen
    (`unseen_share`).
    """

    def lower(self, alpha: float) -> float:
        """The bound that the true mean is below with probability at most about ``alpha``; NaN without values."""
        least = self.mean - max(self._reach(alpha), self._unseen(alpha) * (self.mean + 1))
        return math.nan if math.isnan(self.mean) else max(-1.0, least)

    def upper(self, alpha: float) -> float:
        """The bound that the true mean is above with probability at most about ``alpha``; NaN without values."""
        most = self.mean + max(self._reach(alpha), self._unseen(alpha) * (1 - self.mean))
        return math.nan if math.isnan(self.mean) else min(1.0, most)

    def _unseen(self, alpha: float) -> float:
        """The share of clusters that may differ from all that were seen; 0 if these differ from each other."""
        return unseen_share(alpha, self.clusters) if self.error <= _ROUNDING else 0.0


@dataclass(frozen=True, slots=True)
class ClusteredAuc(ClusteredShare):
    """The probability that a good answer's score exceeds a bad one's. Its bounds stay wide if one kind is rare.

    DeLong's error is estimated from how the answers of each kind differ. A few that happen to be alike make it far too
    small, and two of them often are. So each bound is the farther of that of `ClusteredShare` and the theta at which

        |AUC - theta| = z sqrt(V(theta)),
        V(theta) = theta (1 - theta) (1 + k (1 - theta) / (2 - theta) + k theta / (1 + theta)) / (good bad),

    with k = (good + bad) / 2 - 1 (Newcombe 2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic", part 2, method 5). V(1/2) is the variance of the Mann-Whitney statistic without any effect.

    Attributes:
        good: The effective number of clusters with good answers.
        bad: That of clusters with bad ones.
    """

    good: float
    bad: float

    @property
    def rarer(self) -> float:
        """The effective number of clusters of the rarer kind."""
        return min(self.good, self.bad)

    def lower(self, alpha: float) -> float:
        """The bound that the true value is below with probability at most about ``alpha``; NaN without both kinds."""
        return math.nan if math.isnan(self.mean) else min(ClusteredShare.lower(self, alpha), self._score(alpha, 0.0))

    def upper(self, alpha: float) -> float:
        """The bound that the true value is above with probability at most about ``alpha``; NaN without both kinds."""
        return math.nan if math.isnan(self.mean) else max(ClusteredShare.upper(self, alpha), self._score(alpha, 1.0))

    def _score(self, alpha: float, end: float) -> float:
        """Return Newcombe's bound between the AUC and ``end``, by bisection."""
        z = NormalDist().inv_cdf(1 - alpha)
        k = (self.good + self.bad) / 2 - 1
        outside, inside = end, self.mean
        for _ in range(_BISECTIONS):
            theta = (outside + inside) / 2
            pairs = 1 + k * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            reach = z * math.sqrt(theta * (1 - theta) * pairs / (self.good * self.bad))
            outside, inside = (theta, inside) if abs(self.mean - theta) > reach else (outside, theta)
        return outside


def as_share(mean: ClusteredMean) -> ClusteredShare:
    """Return the mean as one of values that are all in [0, 1]."""
    return ClusteredShare(mean.mean, mean.error, mean.clusters)


def as_difference(mean: ClusteredMean) -> ClusteredDifference:
    """Return the mean as one of values that are all in [-1, 1]."""
    return ClusteredDifference(mean.mean, mean.error, mean.clusters)


def clustered_mean(values: Floats, weights: Floats, clusters: Ints) -> ClusteredMean:
    """Return sum(w x) / sum(w) with the error of a ratio of sums over clusters (linearised, "sandwich").

    Args:
        values: (n,).
        weights: (n,), at least 0.
        clusters: (n,), the number of each value's cluster.
    """
    total = float(weights.sum())
    if not total > 0:
        return ClusteredMean(math.nan, math.inf, 0.0)
    mean = float(weights @ values) / total
    sizes = _sums(weights, clusters)
    residuals = _sums(weights * (values - mean), clusters)
    return ClusteredMean(mean, _error(residuals[sizes > 0]) / total, effective_clusters(weights, clusters))


def two_way_mean(values: Floats, weights: Floats, first: Ints, second: Ints) -> ClusteredMean:
    """Return the mean of values that depend on each other through two things, such as their prompt and their person.

    The squared error is the sum of those over either clustering, less that over their intersections (Cameron, Gelbach
    and Miller 2011), and at least the larger of the two. If the second clustering has one cluster, nothing is known of
    how others differ from it, and the error is that over the first one.

    Args:
        values: (n,).
        weights: (n,), at least 0.
        first: (n,), the number of each value's first cluster.
        second: (n,), the number of its second one.
    """
    one = clustered_mean(values, weights, first)
    if len(np.unique(second[weights > 0])) < 2:
        return one
    other = clustered_mean(values, weights, second)
    both = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].ravel()
    squared = one.error**2 + other.error**2 - clustered_mean(values, weights, both).error ** 2
    least = max(one.error, other.error) ** 2
    error = math.sqrt(max(squared, least)) if math.isfinite(squared) else math.inf
    return ClusteredMean(one.mean, error, min(one.clusters, other.clusters))


def effective_clusters(weights: Floats, clusters: Ints) -> float:
    """Return (sum of sizes)^2 / sum of squared sizes of the clusters, a size being a sum of weights; 0 without any."""
    sizes = _sums(weights, clusters)
    squares = float(sizes @ sizes)
    return float(sizes.sum()) ** 2 / squares if squares > 0 else 0.0


def clustered_auc(scores: Floats, is_good: npt.NDArray[np.bool_], weights: Floats, clusters: Ints) -> ClusteredAuc:
    """Return the probability that a good answer's score exceeds a bad one's, ties counted half.

    The error is DeLong's (1988), summed over clusters (Obuchowski 1997). With one cluster of either kind it is
    infinite.

    Args:
        scores: (n,).
        is_good: (n,), True at answers that people liked.
        weights: (n,), at least 0.
        clusters: (n,), the number of each answer's cluster.
    """
    good, bad = weights * is_good, weights * ~is_good
    each = effective_clusters(good, clusters), effective_clusters(bad, clusters)
    if not (rarer := min(each)) > 0:
        return ClusteredAuc(math.nan, math.inf, effective_clusters(weights, clusters), *each)
    order = np.unique(scores, return_inverse=True)[1]
    good_at, bad_at = np.bincount(order, weights=good), np.bincount(order, weights=bad)
    # The share of the other kind's weight that each answer is on the right side of.
    above_bad = ((np.cumsum(bad_at) - bad_at / 2) / bad.sum())[order]
    below_good = ((good.sum() - np.cumsum(good_at) + good_at / 2) / good.sum())[order]
    auc = float(good @ above_bad / good.sum())
    parts = good * (above_bad - auc) / good.sum() + bad * (below_good - auc) / bad.sum()
    residuals = _sums(parts, clusters)
    error = math.sqrt(rarer / (rarer - 1) * float(residuals @ residuals)) if rarer > 1 + _ROUNDING else math.inf
    return ClusteredAuc(auc, error, effective_clusters(weights, clusters), *each)


def unseen_share(alpha: float, clusters: float) -> float:
    """Return the largest share of which so many clusters show none with probability ``alpha``; 1 without clusters."""
    return 1 - alpha ** (1 / clusters) if clusters > 0 else 1.0


def t_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t by its expansion around the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def _sums(values: Floats, clusters: Ints) -> Floats:
    """The sum of each cluster's values."""
    return np.bincount(clusters, weights=values).astype(np.float64)


def _error(residuals: Floats) -> float:
    """The standard error of a sum over clusters, from each cluster's deviation."""
    n = len(residuals)
    return float(np.sqrt(n / (n - 1) * (residuals @ residuals))) if n > 1 else math.inf
