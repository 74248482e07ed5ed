"""Policy gradients on sampled responses, as pure functions: KL estimates, advantages, clipped losses.

Tensors are (rows, columns) over the tokens of each row's response unless stated; ``is_token`` is bool and True at
tokens that the policy sampled. Log-probabilities are in nats, at the temperature that the tokens were sampled with.
Losses are returned per token, 0 where it is no token, not reduced: see `token_mean`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# exp of a larger difference says only that something is broken, and would overflow.
_LARGEST_LOG_RATIO = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(policy || reference) at each token, sampled by the policy, in nats: Schulman 2020, "Approximating KL".

    With r = log pi - log ref: k1 = r, without bias; k2 = r^2 / 2, biased, whose gradient is that of the KL when it is
    a loss; k3 = exp(-r) - 1 + r, without bias, never negative, of low variance, for figures and rewards.
    """
    ratio = (logprobs - ref_logprobs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    if estimator == "k1":
        return ratio
    if estimator == "k2":
        return ratio.square() / 2
    return torch.expm1(-ratio) + ratio


def token_rewards(score: Tensor, kl: Tensor, is_token: Tensor, beta: float) -> Tensor:
    """-beta * kl at each token, the response's score added at its last one: Ziegler et al. 2019, eq. 2.

    score: (rows,). Rows without a token get nothing.
    """
    rewards = torch.where(is_token, -beta * kl, 0.0)
    columns = torch.arange(is_token.shape[1], device=is_token.device)
    last = torch.where(is_token, columns, -1).max(dim=1, keepdim=True).values
    return rewards + torch.where(columns == last, score.unsqueeze(1), 0.0)


def advantages_of(rewards: Tensor, values: Tensor, is_token: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates, 0 where it is no token: Schulman et al. 2016, eq. 16.

    What stands between two tokens and is none (a tool's answer) carries the bootstrap through: it neither zeroes nor
    discounts it. The returns that a critic learns are these, before whitening, plus ``values``.
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
    """Mean 0 and standard deviation 1 over the tokens of the whole rollout; 0 where it is no token."""
    kept = values[is_token]
    if kept.numel() < 2:
        return torch.where(is_token, values - values, 0.0)
    scaled = (values - kept.mean()) * torch.rsqrt(kept.var(unbiased=False) + 1e-8)
    return torch.where(is_token, scaled, 0.0)


def group_advantages(scores: Tensor, scale: bool = True) -> Tensor:
    """Each score less its group's mean, over its standard deviation with ``scale``: GRPO, Shao et al. 2024, 4.1.2.

    Without scale as in Dr. GRPO (Liu et al. 2025): dividing weighs prompts by how much their scores agree, and moves
    the optimum. scores: (groups, k), k at least 2; groups whose scores are all alike get 0. Returns (groups, k).
    """
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / (scores.std(dim=1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out(scores: Tensor) -> Tensor:
    """Each score less the mean of the others of its group: RLOO, Ahmadian et al. 2024, eq. 7.

    scores: (groups, k), k at least 2. Returns (groups, k).
    """
    k = scores.shape[1]
    return (scores - scores.mean(dim=1, keepdim=True)) * (k / (k - 1))


def importance(logprobs: Tensor, behaviour_logprobs: Tensor, is_token: Tensor, most: float) -> Tensor:
    """pi / mu of each token against the policy mu that sampled it, at most ``most``; 0 where it is no token.

    Corrects tokens sampled by an older policy; the bound trades bias for variance (Ionides 2008). Detached.
    """
    ratio = (logprobs - behaviour_logprobs).detach().clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return torch.where(is_token, ratio.exp().clamp(max=most), 0.0)


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, is_token: Tensor, clip: float, clip_above: float
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip_above)): PPO, Schulman et al. 2017, eq. 7.

    rho = pi / pi_old. The two bounds are equal in PPO; a wider upper one lets rare tokens grow (DAPO, Yu et al. 2025).
    """
    ratio = (logprobs - old_logprobs).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip_above)
    return torch.where(is_token, torch.maximum(-advantages * ratio, -advantages * clipped), 0.0)


def clipped_share(logprobs: Tensor, old_logprobs: Tensor, is_token: Tensor, clip: float, clip_above: float) -> Tensor:
    """Share of tokens whose ratio left [1 - clip, 1 + clip_above], ()."""
    ratio = (logprobs - old_logprobs).exp()
    return token_mean(((ratio < 1 - clip) | (ratio > 1 + clip_above)).float(), is_token)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, is_token: Tensor, clip: float) -> Tensor:
    """max((v - R)^2, (v_old + clip(v - v_old, +-clip) - R)^2) / 2: as in lm-human-preferences (Ziegler et al. 2019)."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.where(is_token, torch.maximum((values - returns).square(), (near - returns).square()) / 2, 0.0)


def token_mean(per_token: Tensor, is_token: Tensor, tokens: float | None = None) -> Tensor:
    """Sum over tokens over their number, (); ``tokens``: that of the whole step, over micro-batches and processes.

    A mean of means would weigh a token by how few others its micro-batch has.
    """
    total = is_token.sum().clamp(min=1) if tokens is None else tokens
    return torch.where(is_token, per_token, 0.0).sum() / total
