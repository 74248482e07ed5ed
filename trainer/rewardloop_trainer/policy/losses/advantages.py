"""How much better each sampled token or response was than expected.

Tensors of tokens are (rows, columns): row i holds the response of rollout i from column 0 on. ``is_token`` is bool and
True at tokens that the policy sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(score: Tensor, kl: Tensor, is_token: Tensor, beta: float) -> Tensor:
    """-beta * KL at each token, plus the response's score at its last token.

    Source: Ziegler et al. 2019, eq. 2.

    Args:
        score: (rows,), the score of each response.
        kl: (rows, columns), the KL at each token, in nats.
        is_token: (rows, columns).
        beta: Reward that a nat of KL costs.

    Returns:
        (rows, columns), 0 where there is no token. A row without tokens gets no reward.
    """
    rewards = torch.where(is_token, -beta * kl, 0.0)
    columns = torch.arange(is_token.shape[1], device=is_token.device)
    last = torch.where(is_token, columns, -1).max(dim=1, keepdim=True).values
    return rewards + torch.where(columns == last, score.unsqueeze(1), 0.0)


def advantages_of(rewards: Tensor, values: Tensor, is_token: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates.

    Source: Schulman et al. 2016, eq. 16. Columns between two tokens that are no tokens of the policy (a tool's reply)
    pass the bootstrapped value through: they neither zero it nor discount it. The returns that a critic learns are
    these advantages, before whitening, plus ``values``.

    Args:
        rewards: (rows, columns), from `token_rewards`.
        values: (rows, columns), the return that the critic expects before each token.
        is_token: (rows, columns).
        gamma: Discount per token.
        lam: Weight of longer estimates, from 0 (one step) to 1 (whole response).

    Returns:
        (rows, columns), 0 where there is no token.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        here = is_token[:, t]
        estimate = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * following
        following = torch.where(here, estimate, following)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, estimate, 0.0)
    return advantages


def whiten(values: Tensor, is_token: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over all tokens of the rollout.

    Args:
        values: (rows, columns).
        is_token: (rows, columns).

    Returns:
        (rows, columns), 0 where there is no token, and 0 everywhere if there are fewer than two tokens.
    """
    kept = values[is_token]
    if kept.numel() < 2:
        return torch.where(is_token, values - values, 0.0)
    scaled = (values - kept.mean()) * torch.rsqrt(kept.var(unbiased=False) + 1e-8)
    return torch.where(is_token, scaled, 0.0)


def group_advantages(scores: Tensor, scale: bool = True) -> Tensor:
    """Each score minus the mean of its group.

    Source: GRPO, Shao et al. 2024, section 4.1.2. Dividing by the deviation weighs a prompt by how little its scores
    differ, and moves the optimum; Dr. GRPO (Liu et al. 2025) leaves it out.

    Args:
        scores: (groups, k) with k at least 2; one group holds the scores of the responses to one prompt.
        scale: Whether to divide by the standard deviation of the group.

    Returns:
        (groups, k), 0 in a group whose scores are all equal.
    """
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out(scores: Tensor) -> Tensor:
    """Each score minus the mean of the other scores of its group.

    Source: RLOO, Ahmadian et al. 2024, eq. 7.

    Args:
        scores: (groups, k) with k at least 2.

    Returns:
        (groups, k).
    """
    k = scores.shape[1]
    return (scores - scores.mean(dim=1, keepdim=True)) * (k / (k - 1))


def overlong_penalty(tokens: Tensor, longest: int, grace: int) -> Tensor:
    """The penalty of a response that comes near the maximum length: 0 up to ``longest - grace`` tokens, then linear.

    Source: DAPO, Yu et al. 2025, eq. 13, without its sign.

    Args:
        tokens: (rows,), numbers of tokens.
        longest: Most tokens of a response.
        grace: Last tokens before the maximum, over which the penalty grows; 0: no penalty.

    Returns:
        (rows,), from 0 to 1.
    """
    if grace == 0:
        return torch.zeros(tokens.shape, device=tokens.device)
    return ((tokens - (longest - grace)) / grace).clamp(0.0, 1.0)
