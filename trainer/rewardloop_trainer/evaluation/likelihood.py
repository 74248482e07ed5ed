"""How likely a reward model makes what people said, at the scale that suits it best.

Two models are compared by the likelihood and not by accuracy, because it needs far fewer statements: it counts by how
much an answer was ranked right or wrong. Logits of different models have different scales, and a scale orders nothing,
so each model gets the one scale under which the statements are most likely. The scale is at least 0: a model that
contradicts people is as good as none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.reward.evaluate import Floats

# A model that makes no mistake would get an infinite scale; margins beyond this many nats say nothing more.
_MOST_NATS = 30.0
_HALVINGS = 30
_NEWTON_STEPS = 30
_BINS = 10
_RIDGE = 1e-4


def cross_entropy(margins: Floats, targets: Floats) -> Floats:
    """-t log sigmoid(m) - (1 - t) log sigmoid(-m), in nats, (n,)."""
    losses: Floats = np.logaddexp(0.0, -margins) + (1 - targets) * margins
    return losses


def best_slope(margins: Floats, targets: Floats, weights: Floats) -> float:
    """Return the a >= 0 under which the cross-entropy of a * margins is least: the slope of the calibration.

    It is 1 for a model whose margins are true log odds, below 1 for one that is too sure, and 0 for one whose margins
    say nothing or the opposite.
    """
    scale = float(np.sqrt((margins**2).mean())) if margins.size else 0.0
    if scale == 0:
        return 0.0

    def rises(slope: float) -> bool:
        return float(weights @ (margins * (sigmoid(slope * margins) - targets))) >= 0

    low, high = 0.0, _MOST_NATS / scale
    if rises(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    return (low + high) / 2


def comparison_losses(margins: Floats, targets: Floats, weights: Floats) -> Floats:
    """The cross-entropies of comparisons at the margins' best slope, in nats, (n,)."""
    return cross_entropy(best_slope(margins, targets, weights) * margins, targets)


def grade_losses(logits: Floats, labels: Floats, weights: Floats) -> Floats:
    """The cross-entropies of thumbs and ratings under sigmoid(a r + b) with the best a >= 0 and b, in nats, (n,).

    A logit that is the same for all answers gets the loss of the labels' mean.
    """
    total = float(weights.sum())
    if not total > 0:
        return np.zeros(len(logits))
    mean = float(np.clip(weights @ labels / total, 1e-6, 1 - 1e-6))
    flat = np.array([math.log(mean / (1 - mean)), 0.0])
    center = float(weights @ logits) / total
    deviation = math.sqrt(float(weights @ (logits - center) ** 2) / total)
    if deviation <= 1e-9 * max(1.0, abs(center)):
        return cross_entropy(np.full(len(logits), flat[0]), labels)
    columns = np.stack([np.ones(len(logits)), (logits - center) / deviation], axis=1)
    fitted = fit_logistic(columns, labels, weights / total, flat)
    chosen = fitted if fitted[1] > 0 else flat
    return cross_entropy(columns @ chosen, labels)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Strict choices of about the same confidence.

    Attributes:
        confidence: The mean of their confidences, from 1/2 to 1.
        accuracy: The share of them that the model ordered as people did.
        share: Their share of all choices' weight.
        choices: Their number.
    """

    confidence: float
    accuracy: float
    share: float
    choices: int


def reliability(margins: Floats, weights: Floats, bins: int = _BINS) -> list[ReliabilityBin]:
    """Return the bins of a reliability plot that hold choices, from the least confidence to the most.

    Args:
        margins: (n,), the chosen response's logit less the rejected one's; sigmoid(|margin|) is the confidence.
        weights: (n,), at least 0.
        bins: Bins of equal width between the confidences 1/2 and 1.
    """
    total = float(weights.sum())
    if not total > 0:
        return []
    confidence = sigmoid(np.abs(margins))
    right = (margins > 0) + 0.5 * (margins == 0)
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    sizes = np.bincount(places, weights=weights, minlength=bins)
    sums = [np.bincount(places, weights=weights * values, minlength=bins) for values in (confidence, right)]
    counts = np.bincount(places[weights > 0], minlength=bins)
    return [
        ReliabilityBin(float(sums[0][i] / sizes[i]), float(sums[1][i] / sizes[i]), float(sizes[i]) / total, int(count))
        for i, count in enumerate(counts)
        if sizes[i] > 0
    ]


def calibration_error(margins: Floats, weights: Floats) -> float:
    """The expected calibration error of strict choices: how far confidence and accuracy are apart, from 0 to 1.

    It is the mean over the bins of `reliability`, by their shares; NaN without a choice (Guo et al. 2017).
    """
    bins = reliability(margins, weights)
    return sum(each.share * abs(each.confidence - each.accuracy) for each in bins) if bins else math.nan


def fit_logistic(columns: Floats, labels: Floats, weights: Floats, start: Floats) -> Floats:
    """Fit a logistic regression by Newton's method, with a ridge that keeps the coefficients of separable data finite.

    Args:
        columns: (n, k), what the log odds are linear in.
        labels: (n,), in [0, 1].
        weights: (n,), at least 0, with a sum of 1.
        start: (k,), the coefficients from which the steps begin.

    Returns:
        The coefficients, (k,).
    """
    beta = start
    for _ in range(_NEWTON_STEPS):
        likely = sigmoid(columns @ beta)
        gradient = columns.T @ (weights * (likely - labels)) + _RIDGE * beta
        curvature = (columns * (weights * likely * (1 - likely))[:, None]).T @ columns + _RIDGE * np.eye(len(start))
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))  # a longer one may overshoot
        beta = beta - step
        if float(np.abs(step).max()) < 1e-8:
            break
    return beta


def logistic_errors(
    columns: Floats, labels: Floats, beta: Floats, clusters: npt.NDArray[np.int64], weights: Floats | None = None
) -> Floats:
    """Return the standard errors of fitted coefficients over independent clusters ("sandwich"), (k,).

    Args:
        columns: (n, k), as for `fit_logistic`.
        labels: (n,), in [0, 1].
        beta: (k,), the coefficients that were fitted.
        clusters: (n,), the number of each row's cluster.
        weights: (n,), the weights that they were fitted with, on any scale; None if these were equal.

    Returns:
        The errors; infinite with fewer than two clusters.
    """
    numbers = np.unique(clusters, return_inverse=True)[1]
    count = int(numbers.max()) + 1 if len(numbers) else 0
    if count < 2:
        return np.full(len(beta), math.inf)
    likely = sigmoid(columns @ beta)
    weighed = np.ones(len(labels)) if weights is None else weights
    inverse = np.linalg.pinv((columns * (weighed * likely * (1 - likely))[:, None]).T @ columns)
    sums = np.zeros((count, len(beta)))
    np.add.at(sums, numbers, columns * (weighed * (labels - likely))[:, None])
    covariance = inverse @ (sums.T @ sums * count / (count - 1)) @ inverse
    errors: Floats = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return errors
