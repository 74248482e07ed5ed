"""Supervised training of a language model on completions alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rewardloop.formats.text import Encoder
from rewardloop_trainer.completions import (
    Completion,
    by_length,
    encode_completions,
    plan_batches,
    rate_scale,
    token_logprobs,
)
from rewardloop_trainer.policy_settings import SftSettings
from rewardloop_trainer.preferences import Prompt


@dataclass(frozen=True, slots=True)
class SftProgress:
    """After a step: its loss in nats a completion token."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class SftOutcome:
    """``last_loss``: mean over the last tenth of the steps, nats a token. ``dropped``: over-length examples."""

    steps: int
    last_loss: float
    dropped: int


def train_sft(
    model: Any,
    encoder: Encoder,
    examples: Sequence[tuple[Prompt, str]],
    settings: SftSettings,
    on_progress: Callable[[SftProgress], None] = lambda _: None,
) -> SftOutcome:
    """Train ``model`` (a Hugging Face causal LM) in place; it is in evaluation mode afterwards.

    The loss of a step is the mean over all its completion tokens, however it is split into forward passes: a long
    completion weighs by its tokens. Dropout is off. Raises ValueError when no example fits the maximum length.
    """
    encoded = encode_completions(encoder, examples)
    rows = [row for row in encoded if row is not None]
    if not rows:
        raise ValueError("there is nothing to train on")
    lengths = [len(row.ids) for row in rows]
    plan = [
        [rows[i] for i in step]
        for epoch in range(settings.epochs)
        for step in plan_batches(lengths, settings.batch_examples, settings.seed, epoch)
    ]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    model.eval()
    losses: list[float] = []
    for step, batch in enumerate(plan):
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = settings.learning_rate * rate_scale(step, len(plan), settings.warmup_share)
        optimizer.zero_grad(set_to_none=True)
        losses.append(_accumulate(model, batch, encoder.format.pad, settings.micro_batch_tokens))
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm, error_if_nonfinite=True)
        optimizer.step()
        on_progress(SftProgress(step + 1, len(plan), losses[-1]))
    last = losses[-max(1, len(losses) // 10) :]
    return SftOutcome(len(plan), sum(last) / len(last), len(encoded) - len(rows))


def _accumulate(model: Any, batch: Sequence[Completion], pad_id: int, token_budget: int) -> float:
    """Add the gradients of one step's loss; returns the loss."""
    total = sum(row.tokens for row in batch)
    loss = 0.0
    for group in by_length([len(row.ids) for row in batch], token_budget):
        logprobs, _ = token_logprobs(model, [batch[i] for i in group], pad_id)
        part = -logprobs.sum() / total
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
    return loss
