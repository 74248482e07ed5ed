"""GRPO: PPO's clipped ratio per token, with the responses to one prompt as each other's baseline.

Source: Shao et al. 2024, "DeepSeekMath". Two things differ from the paper:

- The KL is subtracted from the reward of the response, so that the optimum is the reference times exp(reward / beta).
  The paper has it as a loss per token, which ignores what a token does to the KL of later tokens.
- The loss is a mean over the tokens of the whole minibatch, and advantages are not divided by the deviation of their
  group unless the settings ask for it, as in Dr. GRPO (Liu et al. 2025) and DAPO (Yu et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import group_advantages
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, GrpoSettings


class Grpo(Algorithm):
    """Every token of a response has the advantage of the response."""

    entry = ONLINE["grpo"]

    def __init__(self, settings: GrpoSettings) -> None:
        self.settings: GrpoSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        rewards = (samples.scores - beta * samples.sequence_kl()).view(-1, samples.responses)
        advantages = group_advantages(rewards, self.settings.scale_groups).view(-1, 1)
        tensors = {
            "is_token": samples.is_token,
            "logprobs": samples.logprobs,
            "advantages": torch.where(samples.is_token, advantages, 0.0) * samples.importance,
        }
        figures = {"groups_alike": samples.equal_groups()}
        return Experience(samples.rows, tensors, samples.is_token.sum(1).float(), 1, figures)

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        clip, clip_above = self.settings.clip, self.settings.clip_above
        return clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], clip, clip_above
        ).sum(1)
