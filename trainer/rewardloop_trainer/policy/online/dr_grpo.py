"""Dr. GRPO: GRPO without its two biases, towards prompts whose scores differ little and towards long wrong responses.

Source: Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3. Advantages are not divided by the deviation
of their group, and the loss of a response is divided by a constant, the most tokens of a response, instead of by
lengths. As in this project's GRPO, the KL is subtracted from the reward.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import group_advantages
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, DrGrpoSettings


class DrGrpo(Algorithm):
    """A token weighs the same in every response and in every minibatch."""

    entry = ONLINE["dr-grpo"]

    def __init__(self, settings: DrGrpoSettings) -> None:
        self.settings: DrGrpoSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        rewards = (samples.scores - beta * samples.sequence_kl()).view(-1, samples.responses)
        advantages = group_advantages(rewards, scale=False).view(-1, 1)
        tensors = {
            "is_token": samples.is_token,
            "logprobs": samples.logprobs,
            "advantages": torch.where(samples.is_token, advantages, 0.0) * samples.importance,
        }
        weight = torch.full_like(samples.scores, float(self.settings.max_new_tokens))
        return Experience(samples.rows, tensors, weight, 1, {"groups_alike": samples.equal_groups()})

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        clip, clip_above = self.settings.clip, self.settings.clip_above
        return clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], clip, clip_above
        ).sum(1)
