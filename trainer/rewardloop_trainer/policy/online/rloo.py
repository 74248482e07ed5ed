"""RLOO: REINFORCE on whole answers, the others to the same prompt as the baseline. Ahmadian et al. 2024.

An answer is one action: its ratio, which clips as PPO's, is that of its probability as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.policy_gradient import clipped_surrogate, leave_one_out
from rewardloop_trainer.policy.online.experience import Experience, Now, Samples
from rewardloop_trainer.policy.online.grpo import agreement
from rewardloop_trainer.policy.online_settings import OnlineSettings


class Rloo:
    """The KL of the whole answer is part of its reward."""

    has_critic = False

    def __init__(self, settings: OnlineSettings) -> None:
        self._settings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        rewards = (samples.scores - beta * samples.sequence_kl()).view(-1, samples.responses)
        # An answer's importance is its tokens' product, bounded as each of them is.
        importance = samples.importance.where(samples.is_token, 1.0).prod(1).clamp(max=self._settings.most_importance)
        tensors = {
            "is_token": samples.is_token,
            "logprobs": samples.logprobs,
            "advantages": leave_one_out(rewards).view(-1) * importance,
        }
        return Experience(samples.rows, tensors, torch.ones_like(samples.scores), 1, agreement(samples))

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        settings = self._settings
        logprob, old = now.logprobs.sum(1, keepdim=True), part["logprobs"].sum(1, keepdim=True)
        whole = torch.ones_like(logprob, dtype=torch.bool)
        advantages = part["advantages"].unsqueeze(1)
        return clipped_surrogate(logprob, old, advantages, whole, settings.clip, settings.clip_above).squeeze(1)
