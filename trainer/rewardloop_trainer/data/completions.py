"""Prompts with completions as token sequences, and log-probabilities of the completions under a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rewardloop.formats.text import Encoder, RefusedConversation, Row
from rewardloop_trainer.data.computing.logprobs import logprobs_at
from rewardloop_trainer.data.computing.shards import in_step
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.token_batches import by_length


@dataclass(frozen=True, slots=True)
class Completion:
    """A token sequence.

    Attributes:
        ids: The prompt's tokens, then the completion's with its end token.
        start: Index of the completion's first token, at least 1.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """Tokens of the completion, its end token included."""
        return len(self.ids) - self.start


def encode_completions(encoder: Encoder, items: Sequence[tuple[Prompt, str]]) -> list[Completion | None]:
    """Encode pairs of prompt and response.

    A sequence that is too long is not shortened, because that would teach responses without an end, or responses to
    prompts that nobody gave.

    Returns:
        One sequence for each pair; None if it is longer than the encoder's maximum, if the prompt has no token, or if
        the text format has no form for the conversation.
    """
    distinct = list(dict.fromkeys(items))
    groups = encoder.completions([(prompt, [text]) for prompt, text in distinct])
    encoded = {item: _completion(group, encoder.max_length) for item, group in zip(distinct, groups, strict=True)}
    return [encoded[item] for item in items]


def _completion(group: list[Row] | RefusedConversation, longest: int) -> Completion | None:
    if isinstance(group, RefusedConversation):
        return None
    (row,) = group
    completion = Completion((*row.prompt, *row.response), len(row.prompt))
    return completion if len(completion.ids) <= longest and row.prompt else None


def token_logprobs(
    model: Any, rows: Sequence[Completion], pad_id: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token given the tokens before it.

    Rows are padded at the end, which a causal model does not see from the tokens before.

    Args:
        model: A Hugging Face causal LM.
        rows: The sequences.
        pad_id: Token id of padding.
        temperature: What the logits are divided by.

    Returns:
        Log-probabilities (rows, columns) in nats, 0 where there is no completion token; and is_completion (rows,
        columns), bool, True at completion tokens.
    """
    logprobs, is_completion, _ = forward(model, rows, pad_id, temperature)
    return logprobs, is_completion


def forward(
    model: Any, rows: Sequence[Completion], pad_id: int, temperature: float = 1.0, *, with_states: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `token_logprobs`; with ``with_states`` also the last hidden states.

    Returns:
        Log-probabilities and is_completion as `token_logprobs`, and the hidden states (rows, columns, width) from which
        the tokens were predicted, or None.
    """
    ids, first, is_completion = padded(rows, pad_id, model.device)
    is_wanted = pad(is_completion, (first + 1, 0))
    found, states = logprobs_at(model, ids, is_wanted, temperature, with_states=with_states)
    logprobs = torch.zeros(is_completion.shape, device=ids.device).masked_scatter(is_completion, found)
    return logprobs, is_completion, None if states is None else states[:, first:-1]


def padded(rows: Sequence[Completion], pad_id: int, device: torch.device | str) -> tuple[Tensor, int, Tensor]:
    """Pad sequences at the end.

    Returns:
        The ids (rows, longest); the first column ``first`` that predicts a completion token in some row; and
        is_completion (rows, longest - first - 1), bool, for the tokens that the columns from ``first`` on predict.
    """
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad_id] * (longest - len(row.ids))] for row in rows], device=device)
    # The token at t is predicted at t - 1, so the first column that matters is the one before the first completion.
    first = min(row.start for row in rows) - 1
    place = torch.arange(first + 1, longest, device=device)
    starts = torch.tensor([[row.start] for row in rows], device=device)
    ends = torch.tensor([[len(row.ids)] for row in rows], device=device)
    return ids, first, (place >= starts) & (place < ends)


def from_start(per_token: Tensor, is_completion: Tensor, columns: int) -> Tensor:
    """Move each row's completion to column 0.

    Args:
        per_token: (rows, any), aligned as the result of `token_logprobs`.
        is_completion: (rows, any), bool.
        columns: Columns of the result.

    Returns:
        (rows, columns), 0 after the end of a completion.
    """
    first = is_completion.int().argmax(1, keepdim=True)
    source = first + torch.arange(columns, device=per_token.device)
    inside = source < per_token.shape[1]
    source = source.clamp(max=per_token.shape[1] - 1)
    is_there = inside & is_completion.gather(1, source)
    return torch.where(is_there, per_token.gather(1, source), 0.0)


@torch.no_grad()  # not inference_mode, because losses are computed with the sums
def sequence_logprobs(
    model: Any, rows: Sequence[Completion], pad_id: int, token_budget: int, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each whole completion.

    Args:
        model: A Hugging Face causal LM.
        rows: The sequences.
        pad_id: Token id of padding.
        token_budget: Most tokens of a forward pass, padding included.
        temperature: What the logits are divided by.

    Returns:
        (rows,), float32 on the CPU, in nats.
    """
    sums = torch.zeros(len(rows))
    for group in in_step(model, by_length([len(row.ids) for row in rows], token_budget)):
        logprobs, _ = token_logprobs(model, [rows[i] for i in group], pad_id, temperature)
        sums[torch.tensor(group)] = logprobs.sum(-1).cpu()
    return sums
