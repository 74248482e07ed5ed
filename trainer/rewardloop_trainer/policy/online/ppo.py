"""PPO: a clipped ratio per token, with a critic's value as the baseline.

Source: Schulman et al. 2017; for language models Ziegler et al. 2019 and Ouyang et al. 2022. Each token is an action.
It pays for its KL to the reference, and the score of the response is added at the last token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import advantages_of, token_rewards, whiten
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate, clipped_value_loss
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, PpoSettings


class Ppo(Algorithm):
    """The loss of a row is that of the policy plus a multiple of that of the critic."""

    entry = ONLINE["ppo"]

    def __init__(self, settings: PpoSettings) -> None:
        self.settings: PpoSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        critic, is_token = self.settings.critic, samples.is_token
        assert samples.values is not None
        kl = kl_estimate(samples.logprobs, samples.reference, self.settings.kl_estimator)
        rewards = token_rewards(samples.scores, kl, is_token, beta)
        advantages = advantages_of(rewards, samples.values, is_token, critic.gamma, critic.lam)
        returns = torch.where(is_token, advantages + samples.values, 0.0)
        unexplained = (returns - samples.values)[is_token].var() / returns[is_token].var().clamp(min=1e-8)
        tensors = {
            "is_token": is_token,
            "logprobs": samples.logprobs,
            "advantages": whiten(advantages, is_token) * samples.importance,
            "returns": returns,
            "values": samples.values,
        }
        figures = {"explained_variance": 1 - unexplained.item()}
        return Experience(samples.rows, tensors, is_token.sum(1).float(), 1, figures)

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        settings, critic = self.settings, self.settings.critic
        assert now.values is not None
        policy = clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], settings.clip, settings.clip_above
        )
        value = clipped_value_loss(now.values, part["values"], part["returns"], part["is_token"], critic.clip)
        return (policy + critic.coefficient * value).sum(1)
