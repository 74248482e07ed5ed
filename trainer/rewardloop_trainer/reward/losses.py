"""Likelihoods of preference signals under a reward model.

Logits have k columns, one for each score head. Losses are returned per item and head, (n, k), in nats, and not reduced.
`weighted_mean` divides by the weight of the whole step, so that micro-batches of different size count by their items.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

# Finite, because the gradient of a logsumexp over only -inf is NaN.
_NEVER_CHOSEN = -1e9


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_c - r_r - m).

    Source: Bradley and Terry 1952; the margin m as in Llama 2 (Touvron et al. 2023), eq. 2.

    Args:
        chosen: (n, k), logits r_c.
        rejected: (n, k), logits r_r.
        margin: By how much the chosen logit should exceed the rejected one; broadcastable to (n, k).

    Returns:
        (n, k), in nats.
    """
    return -logsigmoid(chosen - rejected - margin)


def tie(first: Tensor, second: Tensor) -> Tensor:
    """-(log sigmoid(d) + log sigmoid(-d)) / 2: the cross-entropy of a Bradley-Terry choice against the target 1/2.

    d is the difference of the two logits. Davidson's model (1970) has a learnt propensity of ties instead. That would
    change the likelihood of every strict choice too, and it cannot be estimated in a round without ties. Both models
    pull the two logits together.

    Args:
        first: (n, k), logits.
        second: (n, k), logits.

    Returns:
        (n, k), in nats, at least log 2, which it is at equal logits.
    """
    difference = first - second
    return -(logsigmoid(difference) + logsigmoid(-difference)) / 2


def plackett_luce(ranked: Tensor, is_response: Tensor) -> Tensor:
    """-log P(order) / (m - 1) with P(order) = prod_i exp(r_i) / sum_{j >= i} exp(r_j).

    Source: Luce 1959, Plackett 1975. The division by the list's length minus one makes it the mean over the choices
    that the ranking consists of; a list of two is Bradley-Terry. How many choices a ranking counts as is in its weight
    (`data.preferences.comparisons_in`).

    Args:
        ranked: (n, m, k), logits, best first; each list has at least two responses.
        is_response: (n, m), bool, False at padding, which is at the end of a list.

    Returns:
        (n, k), in nats.
    """
    present = is_response.unsqueeze(-1)
    logits = ranked.masked_fill(~present, _NEVER_CHOSEN)
    # A running logsumexp from the end: what is left to choose from at each place.
    remaining = torch.logcumsumexp(logits.flip(1), dim=1).flip(1)
    stages = torch.where(present, remaining, 0.0) - torch.where(present, ranked, 0.0)
    return stages.sum(1) / (is_response.sum(1, keepdim=True) - 1)


def pointwise(logits: Tensor, label: Tensor, threshold: Tensor) -> Tensor:
    """Binary cross-entropy of thumbs and ratings with P(up) = sigmoid(r - tau).

    The learnt threshold tau absorbs the level of the labels, which differs between products, so that it does not shift
    the level of the logits.

    Args:
        logits: (n, k), r.
        label: (n,), in [0, 1].
        threshold: (k,), tau.

    Returns:
        (n, k), in nats.
    """
    target = label.unsqueeze(-1).expand_as(logits)
    return binary_cross_entropy_with_logits(logits - threshold, target, reduction="none")


def centring(first: Tensor, second: Tensor, level: Tensor | float = 0.0) -> Tensor:
    """(r_1 + r_2 - 2 l)^2: keeps the level of the logits from drifting, which comparisons do not determine.

    Source: Eisenstein et al. 2023, eq. 4, in which l is 0. Use a coefficient of about 0.01.

    Args:
        first: (n, k), logits of one response of each pair.
        second: (n, k), logits of the other.
        level: The level l to stay at; broadcastable to (n, k). A trained model's own level may be far from 0.

    Returns:
        (n, k).
    """
    return (first + second - 2 * level).square()


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """sum(weight * losses) / sum(weight), or 0 if all weights are 0.

    Args:
        losses: (n, k).
        weight: (n, k) or (n, 1), at least 0.

    Returns:
        ().
    """
    weight = weight.expand_as(losses)
    total = weight.sum()
    return (losses * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))
