"""KTO: learning from single responses marked wanted or unwanted. Ethayarajh et al. 2024, eq. 7 and 8.

r throughout is log pi(y|x) - log ref(y|x), summed over the response's tokens, in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_point(mismatched: Tensor) -> Tensor:
    """z, (): the mean log ratio of responses to other prompts' questions, at least 0 and without gradient.

    mismatched: (n,). It estimates how far the policy has moved as a whole, so that only what stands out from that
    is rewarded.
    """
    return mismatched.detach().mean().clamp(min=0.0)


def kto(log_ratio: Tensor, is_wanted: Tensor, z: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (r - z)) where wanted, 1 - sigmoid(beta (z - r)) where not, (n,); unreduced and unweighted.

    log_ratio: (n,); is_wanted: (n,) bool.
    """
    sign = torch.where(is_wanted, 1.0, -1.0)
    return 1 - torch.sigmoid(sign * beta * (log_ratio - z))


def balanced_weights(is_wanted: Tensor, counts: Tensor | None = None) -> Tensor:
    """(n,): 1 for the commoner kind, for the other one so much that lambda_D n_D / (lambda_U n_U) is 1.

    The paper keeps that quotient within [1, 4/3] (section 4.2). One kind alone has weight 1. counts: (n,), above 0: as
    how many each is counted, 1 unless given.
    """
    counts = torch.ones(len(is_wanted), device=is_wanted.device) if counts is None else counts
    wanted, unwanted = counts[is_wanted].sum(), counts[~is_wanted].sum()
    most = torch.maximum(wanted, unwanted)
    return torch.where(is_wanted, most / wanted, most / unwanted)
