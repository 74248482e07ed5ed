"""GRPO: PPO's clipped ratio a token, the answers to one prompt as each other's baseline. Shao et al. 2024.

The KL is part of the reward, so that the optimum is the reference times exp(reward / beta). As a loss a token, which is
how the paper has it, it leaves out what a token does to the KL of later ones. Token means are over the whole minibatch
and groups are not divided by their deviation unless asked: as in Dr. GRPO (Liu et al. 2025) and DAPO (Yu et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.policy_gradient import clipped_surrogate, group_advantages
from rewardloop_trainer.policy.online.experience import Experience, Now, Samples
from rewardloop_trainer.policy.online_settings import OnlineSettings


class Grpo:
    """Every token of an answer has the answer's advantage."""

    has_critic = False

    def __init__(self, settings: OnlineSettings) -> None:
        self._settings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        rewards = (samples.scores - beta * samples.sequence_kl()).view(-1, samples.responses)
        advantages = group_advantages(rewards, self._settings.scale_groups).view(-1, 1)
        tensors = {
            "is_token": samples.is_token,
            "logprobs": samples.logprobs,
            "advantages": torch.where(samples.is_token, advantages, 0.0) * samples.importance,
        }
        return Experience(samples.rows, tensors, samples.is_token.sum(1).float(), 1, agreement(samples))

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        settings = self._settings
        return clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], settings.clip, settings.clip_above
        ).sum(1)


def agreement(samples: Samples) -> dict[str, float]:
    """Share of groups whose answers all have one score, from which nothing is learned."""
    scores = samples.grouped_scores
    return {"groups_alike": (scores.amax(1) - scores.amin(1) < 1e-6).float().mean().item()}
