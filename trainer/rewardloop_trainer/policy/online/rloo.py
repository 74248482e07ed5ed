"""RLOO: REINFORCE on whole responses, with the other responses to the same prompt as the baseline.

Source: Ahmadian et al. 2024, "Back to Basics". A response is one action: the ratio that is clipped, as in PPO, is that
of the probabilities of the whole response.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import leave_one_out
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, RlooSettings


class Rloo(Algorithm):
    """The KL of the whole response is part of its reward."""

    entry = ONLINE["rloo"]

    def __init__(self, settings: RlooSettings) -> None:
        self.settings: RlooSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        rewards = (samples.scores - beta * samples.sequence_kl()).view(-1, samples.responses)
        # A response's importance weight is the product of its tokens' weights, with the bound that each of them has.
        importance = samples.importance.where(samples.is_token, 1.0).prod(1).clamp(max=self.settings.most_importance)
        tensors = {
            "is_token": samples.is_token,
            "logprobs": samples.logprobs,
            "advantages": leave_one_out(rewards).view(-1) * importance,
        }
        figures = {"groups_alike": samples.equal_groups()}
        return Experience(samples.rows, tensors, torch.ones_like(samples.scores), 1, figures)

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        clip, clip_above = self.settings.clip, self.settings.clip_above
        logprob, old = now.logprobs.sum(1, keepdim=True), part["logprobs"].sum(1, keepdim=True)
        is_response = torch.ones_like(logprob, dtype=torch.bool)
        advantages = part["advantages"].unsqueeze(1)
        return clipped_surrogate(logprob, old, advantages, is_response, clip, clip_above).squeeze(1)
