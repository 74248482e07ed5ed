"""Losses of direct preference optimisation.

y_w is the chosen response of a pair and y_l the rejected one. D is the difference of their log ratios,

    D = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)),

in nats, (pairs,). Losses are returned per pair, (pairs,), and not reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rewardloop_trainer.policy.offline_settings import PreferenceLoss


def sigmoid(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D).

    Source: Rafailov et al. 2023, eq. 7. With label smoothing e it is the conservative DPO of Mitchell 2023: the
    gradient vanishes at sigmoid(beta D) = 1 - e instead of at infinity.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * d) - label_smoothing * logsigmoid(-beta * d)


def robust(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """[(1 - e) l(D) - e l(-D)] / (1 - 2e) with l(D) = -log sigmoid(beta D).

    Source: Chowdhury et al. 2024, eq. 12. If labels are flipped with probability e < 1/2, its mean is the loss on
    unflipped labels.
    """
    right, flipped = -logsigmoid(beta * d), -logsigmoid(-beta * d)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """(D - 1 / (2 beta))^2, with D of log ratios that are averaged over tokens.

    Source: Azar et al. 2023, eq. 17. Label smoothing mixes in the loss of the flipped label, as in `sigmoid`.
    """
    target = 1 / (2 * beta)
    return (1 - label_smoothing) * (d - target).square() + label_smoothing * (d + target).square()


def hinge(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """max(0, 1 - beta D): the calibration loss of SLiC-HF on log ratios.

    Source: Liu et al. 2023 (RSO), eq. 11. Label smoothing mixes in the loss of the flipped label, as in `sigmoid`.
    """
    return (1 - label_smoothing) * relu(1 - beta * d) + label_smoothing * relu(1 + beta * d)


LOSSES: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
}


def pair_losses(
    policy: Tensor, reference: Tensor, tokens: Tensor, settings: PreferenceLoss, offset: Tensor | float = 0.0
) -> Tensor:
    """The loss l(D - o / beta) that the settings name, plus their weight of the chosen response's loss per token.

    The offset o is by how much beta D should exceed 0 at least: the first loss is -log sigmoid(beta D - o). Source:
    Amini et al. 2024 (DPO with an offset). The second term is that of iterative RPO (Pang et al. 2024, eq. 1): DPO
    alone may lower the probability of the chosen response too.

    Args:
        policy: (pairs, 2), log-probabilities of chosen and rejected under the policy, summed over tokens, in nats.
        reference: (pairs, 2), the same under the reference.
        tokens: (pairs, 2), numbers of tokens, at least 1, end token included.
        settings: Which loss, and its parameters.
        offset: (pairs,), o, in nats.

    Returns:
        (pairs,).
    """
    ratio = policy - reference
    if settings.loss == "ipo" or settings.length_normalised:
        ratio = ratio / tokens
    d = ratio[:, 0] - ratio[:, 1] - offset / settings.beta
    losses = LOSSES[settings.loss](d, settings.beta, settings.label_smoothing)
    return losses - settings.sft_weight * policy[:, 0] / tokens[:, 0]
