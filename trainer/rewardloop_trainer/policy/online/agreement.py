"""Compares the log-probabilities that the sampler reports with those of the policy that learns.

An engine that samples with other weights, another temperature or other numerics makes learning silently off-policy.
Small differences are corrected by truncated importance weights (Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training"); a large one means that something is wrong, and the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.clipped import token_mean
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.rollouts import Rollout


class SamplerDisagrees(ArithmeticError):
    """Raised when the sampler's log-probabilities are too far from the learner's; the message has the figures."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far sampler and learner are apart, over all sampled tokens of a step.

    Attributes:
        mean: Mean absolute difference of the log-probabilities, in nats per token.
        largest: Largest absolute difference, in nats.
        kl: k3 estimate of KL(sampler || learner), in nats per token, from the importance ratios.
    """

    mean: float
    largest: float
    kl: float

    @property
    def figures(self) -> Mapping[str, float]:
        """The figures under the names that a step reports."""
        return {"sampler_gap": self.mean, "sampler_gap_max": self.largest, "sampler_kl": self.kl}

    def check(self, sampler: str, most: float) -> None:
        """Raise `SamplerDisagrees` if the KL is above ``most`` nats per token or is not a number."""
        if not self.kl <= most:
            raise SamplerDisagrees(
                f"sampler {sampler}: the probabilities of its tokens are {self.kl:.3g} nats per token of KL from those "
                f"of the policy that learns, above online.max_sampler_kl, which allows {most:.3g} here (mean "
                f"difference {self.mean:.3g}, largest {self.largest:.3g} nats): it samples from other weights, at "
                "another temperature, or with other numerics"
            )


def sampled_logprobs(said: Sequence[Rollout], like: Tensor, sampler: str) -> Tensor:
    """Lay out the log-probabilities that came with the responses.

    Args:
        said: The responses, one for each row.
        like: (rows, columns), whose shape and device the result has.
        sampler: The sampler's name, for the message.

    Returns:
        (rows, columns), in nats; each response starts in column 0, and there is 0 after its end.

    Raises:
        SamplerDisagrees: If a response does not have one log-probability for each of its tokens.
    """
    found = torch.zeros_like(like)
    for i, rollout in enumerate(said):
        if len(rollout.logprobs) != rollout.sequence.tokens:
            raise SamplerDisagrees(
                f"sampler {sampler}: a response of {rollout.sequence.tokens} tokens came with "
                f"{len(rollout.logprobs)} log-probabilities"
            )
        found[i, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs, dtype=like.dtype)
    return found


def agreement(sampled: Tensor, learner: Tensor, is_token: Tensor) -> Agreement:
    """Compare log-probabilities of the same tokens.

    Args:
        sampled: (rows, columns), as the sampler reported them, in nats.
        learner: (rows, columns), under the policy that learns, in nats.
        is_token: (rows, columns), bool.
    """
    gap = torch.where(is_token, (sampled - learner).abs(), 0.0)
    kl = token_mean(kl_estimate(sampled, learner, "k3"), is_token)
    return Agreement(token_mean(gap, is_token).item(), gap.max().item(), kl.item())
