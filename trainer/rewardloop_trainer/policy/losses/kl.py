"""Estimates of how far a policy has moved from its reference, from log-probabilities of sampled tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# exp of a larger log ratio would overflow, and says only that something is broken.
LARGEST_LOG_RATIO = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate KL(policy || reference) at each token that the policy sampled.

    With r = log pi - log ref, clamped to +-20: k1 = r is unbiased. k2 = r^2 / 2 is biased, but as a loss it has the
    gradient of the KL. k3 = exp(-r) - 1 + r is unbiased, never negative and of low variance; it is for figures and
    rewards. Source: Schulman 2020, "Approximating KL divergence".

    Args:
        logprobs: Any shape; log-probabilities under the policy, in nats.
        ref_logprobs: The same shape; log-probabilities under the reference, in nats.
        estimator: Which of the three.

    Returns:
        The same shape, in nats.
    """
    ratio = (logprobs - ref_logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    return torch.expm1(-ratio) + ratio
