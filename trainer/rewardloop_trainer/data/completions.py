"""Prompts with completions as token sequences, and a language model's log-probabilities of the completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.data.token_batches import by_length


@dataclass(frozen=True, slots=True)
class Completion:
    """``ids``: prompt, then completion with its end token; the completion starts at ``start`` (at least 1)."""

    ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """Tokens of the completion."""
        return len(self.ids) - self.start


def encode_completions(encoder: Encoder, items: Sequence[tuple[Prompt, str]]) -> list[Completion | None]:
    """Each (prompt, response) as a sequence; None where it is longer than the encoder's maximum.

    Shortening would teach answers without an end, or to prompts that nobody asked.
    """
    prompts: dict[Prompt, tuple[int, ...]] = {}
    responses = list(dict.fromkeys(text for _, text in items))
    response_ids = dict(zip(responses, encoder.response_ids_batch(responses), strict=True))
    found: list[Completion | None] = []
    for prompt, text in items:
        if (ids := prompts.get(prompt)) is None:
            ids = prompts[prompt] = tuple(encoder.prompt_ids(prompt))
        completion = Completion((*ids, *response_ids[text]), len(ids))
        found.append(completion if len(completion.ids) <= encoder.max_length and ids else None)
    return found


def token_logprobs(
    model: Any, rows: Sequence[Completion], pad_id: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token given what is before it, of logits divided by ``temperature``.

    Returns (rows, columns) logprobs in nats, 0 where it is not a completion token, and is_completion (rows, columns)
    bool. Rows are padded at the end, which a causal model does not see from before it.
    """
    logprobs, is_completion, _ = forward(model, rows, pad_id, temperature)
    return logprobs, is_completion


def forward(
    model: Any, rows: Sequence[Completion], pad_id: int, temperature: float = 1.0, *, with_states: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `token_logprobs`; with ``with_states`` also the last hidden states (rows, columns, width) that predicted the
    tokens: what was known before each."""
    ids, first, is_completion = padded(rows, pad_id, model.device)
    output = model(
        input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first, output_hidden_states=with_states or None
    )
    states = output.hidden_states[-1][:, first:-1] if with_states else None
    logits = output.logits[:, :-1].float().transpose(1, 2)
    losses = cross_entropy(logits / temperature, ids[:, first + 1 :], reduction="none")
    return torch.where(is_completion, -losses, 0.0), is_completion, states


def padded(rows: Sequence[Completion], pad_id: int, device: torch.device | str) -> tuple[Tensor, int, Tensor]:
    """Ids (rows, longest); the first place that predicts a completion token; is_completion (rows, longest - first - 1)
    of the tokens that the places from there on predict."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad_id] * (longest - len(row.ids))] for row in rows], device=device)
    # The token at t is predicted at t - 1: the earliest place that matters is before the first completion token.
    first = min(row.start for row in rows) - 1
    place = torch.arange(first + 1, longest, device=device)
    starts = torch.tensor([[row.start] for row in rows], device=device)
    ends = torch.tensor([[len(row.ids)] for row in rows], device=device)
    return ids, first, (place >= starts) & (place < ends)


def from_start(per_token: Tensor, is_completion: Tensor, columns: int) -> Tensor:
    """Move each row's completion to column 0.

    per_token, is_completion: (rows, any), as of `token_logprobs`. Returns (rows, columns), 0 after a completion's end.
    """
    first = is_completion.int().argmax(1, keepdim=True)
    source = first + torch.arange(columns, device=per_token.device)
    inside = source < per_token.shape[1]
    source = source.clamp(max=per_token.shape[1] - 1)
    is_there = inside & is_completion.gather(1, source)
    return torch.where(is_there, per_token.gather(1, source), 0.0)


@torch.no_grad()  # not inference_mode: the sums go on into losses
def sequence_logprobs(model: Any, rows: Sequence[Completion], pad_id: int, token_budget: int) -> Tensor:
    """Sum over each completion's tokens, (rows,) float32 on the CPU, in nats. ``token_budget``: padded, a forward."""
    sums = torch.zeros(len(rows))
    for group in by_length([len(row.ids) for row in rows], token_budget):
        logprobs, _ = token_logprobs(model, [rows[i] for i in group], pad_id)
        sums[torch.tensor(group)] = logprobs.sum(-1).cpu()
    return sums
