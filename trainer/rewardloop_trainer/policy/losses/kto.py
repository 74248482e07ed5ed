"""KTO: learning from single responses that were marked wanted or unwanted. Source: Ethayarajh et al. 2024, eq. 7 and 8.

r is log pi(y|x) - log ref(y|x), summed over the response's tokens, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_point(mismatched: Tensor) -> Tensor:
    """z: the mean log ratio of responses to other prompts, at least 0, without gradient.

    It estimates how far the policy has moved as a whole, so that only what stands out from that is rewarded.

    Args:
        mismatched: (n,), r of prompts joined with responses to other prompts, in nats.

    Returns:
        (), in nats.
    """
    return mismatched.detach().mean().clamp(min=0.0)


def kto(log_ratio: Tensor, is_wanted: Tensor, z: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (r - z)) for wanted responses, 1 - sigmoid(beta (z - r)) for unwanted ones.

    Args:
        log_ratio: (n,), r, in nats.
        is_wanted: (n,), bool.
        z: (), from `reference_point`.
        beta: How strongly the policy is held to its reference.

    Returns:
        (n,), neither weighted nor reduced.
    """
    sign = torch.where(is_wanted, 1.0, -1.0)
    return 1 - torch.sigmoid(sign * beta * (log_ratio - z))


def balanced_weights(is_wanted: Tensor, counts: Tensor | None = None) -> Tensor:
    """Weights lambda that give wanted and unwanted responses the same total: lambda_D n_D = lambda_U n_U.

    The commoner kind has weight 1 and the other one more. The paper keeps the quotient of the two totals within
    [1, 4/3] (section 4.2).

    Args:
        is_wanted: (n,), bool.
        counts: (n,), above 0; how many responses each one stands for; 1 unless given.

    Returns:
        (n,), all 1 if there is one kind alone.
    """
    counts = torch.ones(len(is_wanted), device=is_wanted.device) if counts is None else counts
    wanted, unwanted = counts[is_wanted].sum(), counts[~is_wanted].sum()
    most = torch.maximum(wanted, unwanted)
    return torch.where(is_wanted, most / wanted, most / unwanted)
