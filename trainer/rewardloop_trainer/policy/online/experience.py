"""The samples and experience of a step as tensors, and the interface of an algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.policy.online_registry import AlgorithmSettings, OnlineEntry


@dataclass(frozen=True, slots=True)
class Samples:
    """The responses of one step; the responses to one prompt are next to each other.

    A row is a response, and a column one of its tokens, from the first one on. Log-probabilities are in nats, at the
    temperature that the tokens were sampled with.

    Attributes:
        rows: The token sequences, with their prompts.
        texts: The responses as texts.
        responses: Responses to each prompt.
        is_token: (rows, columns), bool.
        logprobs: (rows, columns), under the weights that the step begins with.
        reference: (rows, columns), under the frozen policy.
        importance: (rows, columns), importance weight of each token; 1 if the step's own weights sampled it.
        scores: (rows,), the reward of each response.
        values: (rows, columns), what the critic expects before each token; None without a critic.
        weights: (rows,), the weight of the judgement that each row comes from; None: 1, as for sampled responses.
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
    weights: Tensor | None = None

    @property
    def grouped_scores(self) -> Tensor:
        """(prompts, responses)."""
        return self.scores.view(-1, self.responses)

    def sequence_kl(self) -> Tensor:
        """(rows,): the k1 estimate of KL(policy || reference) per response, log pi - log ref, in nats."""
        return (self.logprobs - self.reference).sum(1)

    def equal_groups(self) -> float:
        """Share of groups whose responses all have the same score, from which nothing can be learned."""
        scores = self.grouped_scores
        return (scores.amax(1) - scores.amin(1) < 1e-6).float().mean().item()


@dataclass(frozen=True, slots=True)
class Experience:
    """Rows to learn from, and what does not change about them while the policy learns.

    Attributes:
        rows: The token sequences, with their prompts.
        tensors: What the loss needs, each (rows, ...); always with ``is_token`` and ``logprobs``.
        weight: (rows,), share of each row in its minibatch. The loss of a minibatch is sum(row losses) / sum(weights)
            over all its micro-batches and processes.
        per_item: Rows that stay together in a minibatch: 2 for pairs.
        figures: What to report of the step.
    """

    rows: Sequence[Completion]
    tensors: Mapping[str, Tensor]
    weight: Tensor
    per_item: int
    figures: Mapping[str, float]

    def joined(self, other: Experience) -> Experience:
        """The rows of both, to learn from in the same minibatches, with the figures of this one."""
        return Experience(
            [*self.rows, *other.rows],
            {name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()},
            torch.cat([self.weight, other.weight]),
            self.per_item,
            self.figures,
        )


@dataclass(frozen=True, slots=True)
class Now:
    """The learning policy's view of a set of rows.

    Attributes:
        logprobs: (rows, columns), in nats.
        values: (rows, columns), what the critic expects before each token; None without a critic.
    """

    logprobs: Tensor
    values: Tensor | None


class Algorithm(Protocol):
    """An online algorithm: it turns a step's samples into experience, and has the loss."""

    entry: ClassVar[OnlineEntry]
    settings: AlgorithmSettings

    def experience(self, samples: Samples, beta: float) -> Experience:
        """Turn samples into what the update learns from; ``beta`` is the reward that a nat of KL costs."""
        ...

    def loss(self, now: Now, part: Mapping[str, Tensor]) -> Tensor:
        """The loss of each row, (rows,), not divided by the weights.

        Args:
            now: The learning policy at these rows.
            part: The experience's tensors of these rows.
        """
        ...
