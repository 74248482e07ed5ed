"""DAPO: GRPO with a wider upper bound, a loss per token, only groups that differ, and a penalty that grows with length.

Source: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", eq. 8 to 13. Its parts are

- clip-higher: a ratio counts up to 1 + 0.28, so that rare tokens can grow;
- dynamic sampling: groups of equal scores are dropped, and the loop samples other prompts in their place;
- a mean over the tokens of the whole minibatch;
- soft overlong punishment: the last tokens before the maximum cost up to 1.

The paper has no KL; here one is subtracted from the reward if `online.beta` is set.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.advantages import group_advantages, overlong_penalty
from rewardloop_trainer.policy.losses.clipped import clipped_surrogate
from rewardloop_trainer.policy.online.experience import Algorithm, Experience, Now, Samples
from rewardloop_trainer.policy.online_registry import ONLINE, DapoSettings


class Dapo(Algorithm):
    """Every token of a response has the advantage of the response, in deviations of its group."""

    entry = ONLINE["dapo"]

    def __init__(self, settings: DapoSettings) -> None:
        self.settings: DapoSettings = settings

    def experience(self, samples: Samples, beta: float) -> Experience:
        settings, is_token = self.settings, samples.is_token
        penalty = overlong_penalty(is_token.sum(1), settings.max_new_tokens, settings.overlong_tokens)
        rewards = samples.scores - penalty - (beta if settings.has_kl else 0.0) * samples.sequence_kl()
        groups = rewards.view(-1, samples.responses)
        differs = (groups.amax(1) - groups.amin(1) > 1e-6).repeat_interleave(samples.responses)
        advantages = group_advantages(groups, scale=True).view(-1, 1)
        tensors = {
            "is_token": is_token,
            "logprobs": samples.logprobs,
            "advantages": torch.where(is_token, advantages, 0.0) * samples.importance,
        }
        kept = differs.nonzero().flatten().tolist()
        return Experience(
            [samples.rows[i] for i in kept],
            {name: tensor[kept] for name, tensor in tensors.items()},
            is_token.sum(1).float()[kept],
            1,
            {"groups_alike": samples.equal_groups(), "overlong": (penalty > 0).float().mean().item()},
        )

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        clip, clip_above = self.settings.clip, self.settings.clip_above
        return clipped_surrogate(
            now.logprobs, part["logprobs"], part["advantages"], part["is_token"], clip, clip_above
        ).sum(1)
