"""The win rate that a policy would have if its answers were as long as the other one's.

A logistic model in the manner of AlpacaEval 2 (Dubois et al. 2024): the log odds that an answer wins are
theta + phi * tanh(d / s), with d by how much it is longer and s the deviation of d. The win rate at like lengths is
sigmoid(theta). Their third term, the difficulty of a prompt, needs the results of many models and is left out. They
take the difference of the lengths for d; here it is that or the log of their ratio, whichever makes the verdicts
likelier.

Where one policy's answers are longer to nearly all prompts, theta and phi cannot be told apart from its wins alone. So
comparisons of each policy's answers with its *own* other answers take part as well: there theta is 0 by definition, and
what longer answers win is length's.

No curve fits every judge: one that nearly always takes the longer answer makes a step of it, and a few prompts to which
it likes shorter answers bend the curve far from d = 0, where it decides nothing. So comparisons count the less, the
further their lengths are apart, as far as enough prompts have comparisons of like length (local likelihood, Tibshirani
and Hastie 1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop_trainer.clusters import Ints, effective_clusters, t_quantile
from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.evaluation.likelihood import cross_entropy, fit_logistic, logistic_errors
from rewardloop_trainer.reward.evaluate import Floats

_ALPHA = 0.025
_LEAST_FREEDOM = 2.0
# Widths of the weights, in deviations of d, the narrowest first, and the share of the prompts that a width must keep.
_WIDTHS = (0.25, 0.5, 1.0, 2.0)
_KEPT_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        win_rate: sigmoid(theta); NaN if there is nothing to fit.
        lower: The lower bound of its 95% interval, over prompts.
        upper: The upper bound.
        length_effect: phi, the log odds that a far longer answer gains.
        own_comparisons: Comparisons of a policy's answers with its own. Without any, theta rests on the prompts to
            which both policies gave answers of like length.
    """

    win_rate: float
    lower: float
    upper: float
    length_effect: float
    own_comparisons: int


def length_controlled(shares: Floats, lengths: Floats, is_between: Floats, prompts: Ints) -> LengthControlled:
    """Fit the model to comparisons of two policies, and of each policy with itself.

    Args:
        shares: (n,), how much of each comparison the first answer won, in [0, 1].
        lengths: (n, 2), the lengths of the first and of the second answer, in characters or tokens.
        is_between: (n,), 1 if the first answer is the one policy's and the second the other's, and 0 if both are of the
            same policy.
        prompts: (n,), the number of the prompt: the cluster of the interval.
    """
    between = is_between == 1
    own = int((~between).sum())
    if not between.any():
        return LengthControlled(float("nan"), 0.0, 1.0, float("nan"), own)
    logs = np.log(np.maximum(lengths, 1.0))
    fits = []
    for longer in (lengths[:, 0] - lengths[:, 1], logs[:, 0] - logs[:, 1]):
        relative = _relative(longer)
        columns = np.stack([is_between, np.tanh(relative)], axis=1)
        beta = fit_logistic(columns, shares, np.full(len(shares), 1 / len(shares)), np.zeros(2))
        fits.append((float(cross_entropy(columns @ beta, shares).mean()), columns, relative))
    _, columns, relative = min(fits, key=lambda fit: fit[0])
    weights = _weights(relative, between, prompts)
    beta = fit_logistic(columns, shares, weights / weights.sum(), np.zeros(2))
    error = float(logistic_errors(columns, shares, beta, prompts, weights)[0])
    freedom = max(effective_clusters(weights[between], prompts[between]) - 1, _LEAST_FREEDOM)
    reach = t_quantile(1 - _ALPHA, freedom) * error
    bounds = sigmoid(np.array([beta[0] - reach, beta[0], beta[0] + reach]))
    lower, win_rate, upper = (float(bound) for bound in bounds)
    return LengthControlled(win_rate, lower, upper, float(beta[1]), own)


def _relative(longer: Floats) -> Floats:
    """By how many deviations the first answer is longer."""
    deviation = float(np.sqrt((longer**2).mean()))
    return longer / deviation if deviation > 0 else np.zeros(len(longer))


def _weights(relative: Floats, between: npt.NDArray[np.bool_], prompts: Ints) -> Floats:
    """The weights by the narrowest width that keeps enough prompts; equal ones if none does."""
    wanted = _KEPT_SHARE * effective_clusters(np.ones(int(between.sum())), prompts[between])
    for width in _WIDTHS:
        weights: Floats = np.exp(-0.5 * (relative / width) ** 2)
        if effective_clusters(weights[between], prompts[between]) >= wanted:
            return weights
    return np.ones(len(relative))
