"""Losses of direct preference optimisation, as pure functions on sums of log-probabilities.

D throughout is the difference of two log ratios, (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)),
in nats, (pairs,): y_w the chosen response, y_l the rejected one. Losses are returned per pair, not reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def difference(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """D from log-probabilities summed over each response's tokens, end token included; all (pairs,)."""
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


def difference_per_token(chosen_ratio: Tensor, rejected_ratio: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """D of log ratios averaged over tokens.

    chosen_ratio, rejected_ratio: log pi - log ref, summed; chosen, rejected: numbers of tokens, at least 1. (pairs,).
    """
    return chosen_ratio / chosen - rejected_ratio / rejected


def sigmoid(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D), (pairs,).

    Rafailov et al. 2023, eq. 7; with label smoothing e the conservative DPO of Mitchell 2023: the gradient vanishes
    where sigmoid(beta D) = 1 - e instead of at infinity.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * d) - label_smoothing * logsigmoid(-beta * d)


def robust(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """[(1 - e) l(D) - e l(-D)] / (1 - 2e) with l = -log sigmoid(beta .), (pairs,).

    Chowdhury et al. 2024, eq. 12: its mean over labels flipped with probability e < 1/2 is the loss on clean labels.
    """
    right, flipped = -logsigmoid(beta * d), -logsigmoid(-beta * d)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """(D - 1 / (2 beta))^2, (pairs,), with D of per-token averages. Azar et al. 2023, eq. 17.

    Label smoothing mixes in the loss of the flipped label, as in `sigmoid`.
    """
    target = 1 / (2 * beta)
    return (1 - label_smoothing) * (d - target).square() + label_smoothing * (d + target).square()


def hinge(d: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """max(0, 1 - beta D), (pairs,): SLiC-HF's calibration loss on log ratios, as in Liu et al. 2023 (RSO), eq. 11.

    Label smoothing mixes in the loss of the flipped label, as in `sigmoid`.
    """
    return (1 - label_smoothing) * relu(1 - beta * d) + label_smoothing * relu(1 + beta * d)


LOSSES: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
}


def k3(log_ratio: Tensor) -> Tensor:
    """exp(r) - 1 - r with r = log pi - log ref, clamped to +-20: non-negative, in nats.

    On responses drawn from ref, its mean estimates KL(ref || pi) without bias (Schulman 2020).
    """
    clamped = log_ratio.clamp(-20.0, 20.0)
    return torch.expm1(clamped) - clamped
