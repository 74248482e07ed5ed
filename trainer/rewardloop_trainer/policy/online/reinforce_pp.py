"""REINFORCE++: PPO's clipped ratio per token without a critic, with advantages that are whitened over the whole step.

Source: Hu et al. 2025, "REINFORCE++", eq. 4 to 6. A token's return is the score of its response less the KL that it and
the tokens after it cost. There is no baseline per prompt, so that one response to a prompt is enough.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import advantages_of, token_rewards, whiten
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, ReinforcePpSettings


class ReinforcePp(Algorithm):
    """The mean and the deviation of all tokens' returns stand in for a critic."""

    entry = ONLINE["reinforce-pp"]

    def __init__(self, settings: ReinforcePpSettings) -> None:
        self.settings: ReinforcePpSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        is_token = samples.is_token
        kl = kl_estimate(samples.logprobs, samples.reference, self.settings.kl_estimator)
        rewards = token_rewards(samples.scores, kl, is_token, beta)
        # Without values and with lambda 1, an advantage is the return of its token.
        returns = advantages_of(rewards, torch.zeros_like(rewards), is_token, 1.0, 1.0)
        tensors = {
            "is_token": is_token,
            "logprobs": samples.logprobs,
            "advantages": whiten(returns, is_token) * samples.importance,
        }
        return Experience(samples.rows, tensors, is_token.sum(1).float(), 1, {})

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        clip, clip_above = self.settings.clip, self.settings.clip_above
        return clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], clip, clip_above
        ).sum(1)
