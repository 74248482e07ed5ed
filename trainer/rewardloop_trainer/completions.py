"""Prompts with completions as token sequences, and a language model's log-probabilities of the completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rewardloop.formats.text import Encoder
from rewardloop_trainer.preferences import Prompt


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


def token_logprobs(model: Any, rows: Sequence[Completion], pad_id: int) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token given what is before it.

    Returns (rows, columns) logprobs in nats, 0 where it is not a completion token, and is_completion (rows, columns)
    bool. Rows are padded at the end, which a causal model does not see from before it.
    """
    longest = max(len(row.ids) for row in rows)
    device = model.device
    ids = torch.tensor([[*row.ids, *[pad_id] * (longest - len(row.ids))] for row in rows], device=device)
    # The token at t is predicted at t - 1: the earliest place that matters is before the first completion token.
    first = min(row.start for row in rows) - 1
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=longest - first).logits[:, :-1]
    targets = ids[:, first + 1 :]
    place = torch.arange(first + 1, longest, device=device)
    starts = torch.tensor([[row.start] for row in rows], device=device)
    ends = torch.tensor([[len(row.ids)] for row in rows], device=device)
    is_completion = (place >= starts) & (place < ends)
    losses = cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return torch.where(is_completion, -losses, 0.0), is_completion


@torch.no_grad()  # not inference_mode: the sums go on into losses
def sequence_logprobs(model: Any, rows: Sequence[Completion], pad_id: int, token_budget: int) -> Tensor:
    """Sum over each completion's tokens, (rows,) float32 on the CPU, in nats. ``token_budget``: padded, a forward."""
    sums = torch.zeros(len(rows))
    for group in by_length([len(row.ids) for row in rows], token_budget):
        logprobs, _ = token_logprobs(model, [rows[i] for i in group], pad_id)
        sums[torch.tensor(group)] = logprobs.sum(-1).cpu()
    return sums


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped by length so that rows x longest stays within the budget; a longer row goes alone."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and lengths[index] * (len(groups[-1]) + 1) <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def plan_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of each optimizer step of an epoch: every index once, in an order fixed by seed and epoch.

    Shuffled, then sorted by length within runs of 16 steps: a step holds similar lengths, the order stays random.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    steps: list[list[int]] = []
    for start in range(0, len(shuffled), 16 * size):
        run = sorted(shuffled[start : start + 16 * size], key=lambda i: (lengths[i], i))
        steps += [run[i : i + size] for i in range(0, len(run), size)]
    return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def rate_scale(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear to 0 after the last step; ``step`` counts from 0."""
    warmup = warmup_share * steps
    return min(1.0, (step + 1) / warmup if warmup else 1.0) * (1 - step / steps)
