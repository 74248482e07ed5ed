"""What a step learns from, in tensors: the sampled answers with what is fixed about them while the policy moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rewardloop_trainer.data.completions import Completion


@dataclass(frozen=True, slots=True)
class Samples:
    """The answers of one step: ``responses`` to each prompt, next to each other; (rows, columns) over their tokens.

    ``logprobs``: under the weights that the step begins with. ``reference``: under the frozen policy. ``values``: the
    critic's, with PPO. ``importance``: of each token, 1 where those same weights sampled it. ``scores``: (rows,).
    All log-probabilities are at the temperature that the tokens were sampled with.
    """

    rows: Sequence[Completion]
    texts: Sequence[str]
    responses: int
    is_token: Tensor
    logprobs: Tensor
    reference: Tensor
    importance: Tensor
    scores: Tensor
    values: Tensor | None

    @property
    def grouped_scores(self) -> Tensor:
        """(prompts, responses)."""
        return self.scores.view(-1, self.responses)

    def sequence_kl(self) -> Tensor:
        """(rows,): log pi - log ref of each answer, k1, in nats."""
        return (self.logprobs - self.reference).sum(1)


@dataclass(frozen=True, slots=True)
class Experience:
    """Rows to learn from. ``tensors``: what the loss needs, each (rows, ...), with ``is_token`` and ``logprobs``.

    ``weight``: (rows,), the share of a row in its minibatch: the loss is sum(row losses) / sum(weights), over all
    micro-batches and processes. ``per_item``: rows that stay together, 2 for pairs.
    """

    rows: Sequence[Completion]
    tensors: Mapping[str, Tensor]
    weight: Tensor
    per_item: int
    figures: Mapping[str, float]

    def joined(self, other: Experience) -> Experience:
        """Both, to learn from in the same minibatches; the figures are this one's."""
        return Experience(
            [*self.rows, *other.rows],
            {name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()},
            torch.cat([self.weight, other.weight]),
            self.per_item,
            self.figures,
        )


@dataclass(frozen=True, slots=True)
class Now:
    """The policy as it is: (rows, columns) log-probabilities, and the critic's values with PPO."""

    logprobs: Tensor
    values: Tensor | None


class Algorithm(Protocol):
    """What an algorithm makes of samples, and its loss."""

    has_critic: bool

    def experience(self, samples: Samples, beta: float) -> Experience:
        """What the update learns from. ``beta``: reward that a nat of KL costs."""
        ...

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        """(rows,), not divided by the weights. ``part``: the experience's tensors of these rows."""
        ...
