"""Policy-gradient losses on sampled tokens, with bounded probability ratios.

Tensors are (rows, columns): row i holds the response of rollout i from column 0 on. ``is_token`` is bool and True at
tokens that the policy sampled. Log-probabilities are in nats, at the temperature that the tokens were sampled with.
Losses are returned per token and not reduced, 0 where there is no token; `token_mean` reduces them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.kl import LARGEST_LOG_RATIO


def importance(logprobs: Tensor, behaviour_logprobs: Tensor, is_token: Tensor, most: float) -> Tensor:
    """Importance weights for tokens that an older policy mu sampled: pi / mu, at most ``most``, without gradient.

    The upper bound trades bias for variance. Source: Ionides 2008, "Truncated importance sampling".

    Args:
        logprobs: (rows, columns), under the policy pi.
        behaviour_logprobs: (rows, columns), under the policy mu.
        is_token: (rows, columns).
        most: The upper bound.

    Returns:
        (rows, columns), 0 where there is no token.
    """
    ratio = (logprobs - behaviour_logprobs).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return torch.where(is_token, ratio.exp().clamp(max=most), 0.0)


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, is_token: Tensor, clip: float, clip_above: float
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip_above)) with rho = pi / pi_old.

    Source: PPO, Schulman et al. 2017, eq. 7, as a loss. PPO's two bounds are equal; a wider upper bound lets rare
    tokens grow (DAPO, Yu et al. 2025).

    Args:
        logprobs: (rows, columns), under the policy that learns.
        old_logprobs: (rows, columns), under the policy that the update began with.
        advantages: (rows, columns).
        is_token: (rows, columns).
        clip: How far below 1 a ratio counts.
        clip_above: How far above 1 a ratio counts.

    Returns:
        (rows, columns), 0 where there is no token.
    """
    ratio = (logprobs - old_logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip_above)
    return torch.where(is_token, torch.maximum(-advantages * ratio, -advantages * clipped), 0.0)


def clipped_share(logprobs: Tensor, old_logprobs: Tensor, is_token: Tensor, clip: float, clip_above: float) -> Tensor:
    """Share of tokens whose probability ratio is outside [1 - clip, 1 + clip_above].

    Args as for `clipped_surrogate`. Returns ().
    """
    ratio = (logprobs - old_logprobs).exp()
    return token_mean(((ratio < 1 - clip) | (ratio > 1 + clip_above)).float(), is_token)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, is_token: Tensor, clip: float) -> Tensor:
    """max((v - R)^2, (v_old + clip(v - v_old, -clip, clip) - R)^2) / 2.

    Source: the value loss of lm-human-preferences (Ziegler et al. 2019).

    Args:
        values: (rows, columns), what the critic that learns expects.
        old_values: (rows, columns), what the critic expected when the update began.
        returns: (rows, columns), R.
        is_token: (rows, columns).
        clip: How far a value may move in one update.

    Returns:
        (rows, columns), 0 where there is no token.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.where(is_token, torch.maximum((values - returns).square(), (near - returns).square()) / 2, 0.0)


def token_mean(per_token: Tensor, is_token: Tensor, tokens: float | None = None) -> Tensor:
    """The sum over all tokens, divided by their number.

    Args:
        per_token: (rows, columns).
        is_token: (rows, columns).
        tokens: The number to divide by, if this is a part of a step: the tokens of all its micro-batches and processes.
            A mean of the parts' means would give a token of a small part more weight.

    Returns:
        ().
    """
    total = is_token.sum().clamp(min=1) if tokens is None else tokens
    return torch.where(is_token, per_token, 0.0).sum() / total
