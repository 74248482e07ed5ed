"""Likelihoods of preference signals under a reward model, as pure functions.

Every loss is returned per item and score head, not reduced: `weighted_mean` divides by the weight of the whole
step, so micro-batches of different size count by their items. k is the number of score heads throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

# Finite, because the gradient of a logsumexp over nothing but -inf is not a number.
_NEVER_CHOSEN = -1e9


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_c - r_r - m): Bradley and Terry 1952; the margin inside as in Llama 2 (2023), eq. 2.

    chosen, rejected: (n, k) logits; margin: a number or broadcastable to (n, k). Returns (n, k), in nats.
    """
    return -logsigmoid(chosen - rejected - margin)


def tie(first: Tensor, second: Tensor) -> Tensor:
    """Cross-entropy of a Bradley-Terry choice against the target 1/2: -(log sigmoid(d) + log sigmoid(-d)) / 2.

    Chosen over Davidson's (1970) model because that one's tie probability needs a learnt propensity that also
    changes the likelihood of every strict choice, and here ties are one signal kind among many and can be absent for
    whole rounds, when the propensity is not identified. Both pull the two logits together.

    first, second: (n, k) logits. Returns (n, k), in nats; its least value is log 2, at equal logits.
    """
    difference = first - second
    return -(logsigmoid(difference) + logsigmoid(-difference)) / 2


def plackett_luce(ranked: Tensor, is_response: Tensor) -> Tensor:
    """-log P(order) / (choices made): Plackett 1975, Luce 1959; a list of two is Bradley-Terry.

    P(order) = prod_i exp(r_i) / sum_{j >= i} exp(r_j). Divided by the list's length less one, so that a ranking of any
    length weighs as one comparison.

    ranked: (n, m, k) logits, best first; is_response: (n, m) bool, False at padding, which stands at the end.
    Returns (n, k), in nats. Each list has at least two responses.
    """
    present = is_response.unsqueeze(-1)
    logits = ranked.masked_fill(~present, _NEVER_CHOSEN)
    # Reversed running logsumexp: what is left to choose from at each place.
    remaining = torch.logcumsumexp(logits.flip(1), dim=1).flip(1)
    stages = torch.where(present, remaining, 0.0) - torch.where(present, ranked, 0.0)
    return stages.sum(1) / (is_response.sum(1, keepdim=True) - 1)


def pointwise(logits: Tensor, label: Tensor, threshold: Tensor) -> Tensor:
    """Binary cross-entropy of a thumb or graded label: P(up) = sigmoid(r - tau), tau learnt.

    The threshold takes up the level of the labels, which differs between products, so that the logits' level stays
    free for the comparisons.

    logits: (n, k); label: (n,) in [0, 1]; threshold: (k,). Returns (n, k), in nats.
    """
    target = label.unsqueeze(-1).expand_as(logits)
    return binary_cross_entropy_with_logits(logits - threshold, target, reduction="none")


def centring(first: Tensor, second: Tensor) -> Tensor:
    """(r_1 + r_2)^2: keeps the level from drifting, which no comparison sees (Eisenstein et al. 2023, eq. 4).

    first, second: (n, k) logits of the two responses of a pair. Returns (n, k); use a coefficient of about 0.01.
    """
    return (first + second).square()


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """sum(weight * losses) / sum(weight), 0 where all weights are 0.

    losses: (n, k); weight: (n, k) or (n, 1), at least 0. Returns ().
    """
    weight = weight.expand_as(losses)
    total = weight.sum()
    return (losses * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))
