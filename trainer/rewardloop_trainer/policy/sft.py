"""Supervised training of a language model on the assistant's turns. A killed run goes on from its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.computing.shards import in_step, make_whole
from rewardloop_trainer.data.dialogues import Dialogue, Example, encode_dialogues, keeps_apart, pack, token_losses
from rewardloop_trainer.data.token_batches import by_length, plan_batches, rate_scale
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.gradients import clip
from rewardloop_trainer.learning.lora_layers import has_adapters
from rewardloop_trainer.learning.optimizer import adamw
from rewardloop_trainer.learning.run_control import NothingToLearnFrom
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.policy.sft_settings import SftSettings


@dataclass(frozen=True, slots=True)
class SftProgress:
    """The progress of a run after one step; ``loss`` is in nats per learned token, from before the step."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class SftOutcome:
    """The result of a finished run.

    Attributes:
        steps: Optimizer steps.
        last_loss: Mean loss of the last tenth of the steps, in nats per learned token.
        examples: Examples trained on.
        dropped: Examples dropped because they are longer than the maximum length.
        heldout: Held-out examples.
        perplexity_before: exp of the mean loss per held-out token before training; NaN without held-out examples.
        perplexity_after: The same after training.
    """

    steps: int
    last_loss: float
    examples: int
    dropped: int
    heldout: int
    perplexity_before: float
    perplexity_after: float


def train_sft(  # noqa: PLR0913 - what one run is made of and tells
    model: Any,
    encoder: Encoder,
    train: Sequence[Dialogue],
    settings: SftSettings,
    on_progress: Callable[[SftProgress], None] = lambda _: None,
    *,
    heldout: Sequence[Dialogue] = (),
    checkpoint_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_start: Callable[[int, int], None] = lambda _, __: None,
) -> SftOutcome:
    """Train ``model`` in place; it is in evaluation mode afterwards.

    The loss of a step is the mean over all its learned tokens, however the step is split into forward passes or packed
    into rows, so a response counts by its tokens. Dropout is off. With the same arguments and a checkpoint in
    ``checkpoint_dir``, the run goes on from it to the weights of an uninterrupted run, bit for bit on one kind of CPU
    and number of threads. If torch.distributed is initialised, every process makes this call and learns from its share
    of each step; the first process's checkpoint counts.

    Args:
        model: A Hugging Face causal LM.
        encoder: The model's tokenizer and text layout.
        train: Conversations to learn from.
        settings: The settings of the optimizer and of packing.
        on_progress: Called after each step.
        heldout: Conversations to measure the perplexity on, before and after; may be empty.
        checkpoint_dir: Where checkpoints are kept; None: nowhere.
        should_stop: Asked before each step.
        on_start: Called before the first step with the steps that a checkpoint holds, 0 if the run begins anew, and
            those of the whole run.

    Raises:
        NothingToLearnFrom: If no example fits the maximum length.
        ValueError: If packed examples would see each other in this model.
        TrainingStopped: If ``should_stop`` returned true; the checkpoint is written.
        NonFiniteGradients: If a step's gradients are not finite.
    """
    examples, dropped = encode_dialogues(encoder, train)
    judged, _ = encode_dialogues(encoder, heldout)
    if not examples:
        raise NothingToLearnFrom(
            f"there is nothing to train on: {dropped} examples of {len(train)} conversations are longer than "
            f"{encoder.max_length} tokens or have no form in the model's text format"
        )
    model.eval()
    if settings.packing and not keeps_apart(model, examples, encoder.format.pad):
        raise ValueError("packed examples would see each other in this model: train without packing")
    run = SftRun(model, encoder, examples, judged, settings, checkpoint_dir)
    return run.to_the_end(dropped, on_progress, should_stop, on_start)


class SftRun:
    """One run of supervised training: its model, its optimizer and the steps taken."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        settings: SftSettings,
        checkpoint_dir: Path | None,
    ) -> None:
        self.model, self.settings, self.checkpoint_dir = model, settings, checkpoint_dir
        self.examples, self.heldout = examples, heldout
        self.pad, self.row_tokens = encoder.format.pad, encoder.max_length
        self.fingerprint = self._fingerprint()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        group = {"params": self.parameters, "weight_decay": settings.weight_decay}
        learning = sum(p.numel() for p in self.parameters)
        self.rate = settings.rate_for(learning, are_adapters=has_adapters(model))
        self.optimizer = adamw([group], learning_rate=self.rate)
        self.world = World()
        lengths = [len(example.ids) for example in examples]
        self.plan = [
            step
            for epoch in range(settings.epochs)
            for step in plan_batches(lengths, settings.batch_examples, settings.seed, epoch)
        ]
        self.step = 0
        self.losses: list[float] = []

    def to_the_end(
        self,
        dropped: int,
        on_progress: Callable[[SftProgress], None],
        should_stop: Callable[[], bool],
        on_start: Callable[[int, int], None],
    ) -> SftOutcome:
        """Measure, take the remaining steps, and measure again; ``dropped`` is for the outcome."""
        before = self._perplexity()
        self._resume()
        on_start(self.step, len(self.plan))
        while self.step < len(self.plan):
            if self.world.largest(float(should_stop())):
                self._checkpoint()
                raise TrainingStopped(f"stopped after step {self.step} of {len(self.plan)}")
            self.losses.append(self._learn([self.examples[i] for i in self.plan[self.step]]))
            self.step += 1
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0:
                self._checkpoint()
            on_progress(SftProgress(self.step, len(self.plan), self.losses[-1]))
        last = self.losses[-max(1, len(self.plan) // 10) :]
        after = self._perplexity()
        make_whole(self.model)
        return SftOutcome(
            len(self.plan), sum(last) / len(last), len(self.examples), dropped, len(self.heldout), before, after
        )

    def _learn(self, batch: Sequence[Example]) -> float:
        """Take one optimizer step. Returns its loss from before it, in nats per learned token."""
        for group in self.optimizer.param_groups:
            scale = rate_scale(self.step, len(self.plan), self.settings.warmup_share)
            group["lr"] = self.rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(example.tokens for example in batch)
        loss = 0.0
        for rows in in_step(self.model, self._forwards(self.world.mine(batch))):
            part = token_losses(self.model, rows, self.pad).sum() / total
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        self.world.sum_gradients(self.parameters)
        clip(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        return self._summed(loss)

    def _forwards(self, batch: Sequence[Example]) -> list[list[list[Example]]]:
        """The rows of each forward pass."""
        lengths = [len(example.ids) for example in batch]
        places = pack(lengths, self.row_tokens) if self.settings.packing else [[i] for i in range(len(batch))]
        rows = [[batch[i] for i in row] for row in places]
        longest = [sum(len(example.ids) for example in row) for row in rows]
        return [[rows[r] for r in group] for group in by_length(longest, self.settings.micro_batch_tokens)]

    @torch.no_grad()
    def _perplexity(self) -> float:
        total = sum(example.tokens for example in self.heldout)
        if not total:
            return math.nan
        forwards = in_step(self.model, self._forwards(self.world.mine(self.heldout)))
        loss = self._summed(sum(token_losses(self.model, rows, self.pad).sum().item() for rows in forwards))
        return math.exp(min(loss / total, 700.0))  # an untrained model must not overflow exp

    def _summed(self, value: float) -> float:
        """The sum of all processes' values."""
        return self.world.sum(torch.tensor(value, dtype=torch.float64)).item()

    def _checkpoint(self) -> None:
        if self.checkpoint_dir is None:
            return
        tensors = checkpoint.training_tensors(self.model, self.optimizer)
        if not self.world.is_first:
            return
        losses = {f"{i:08d}": loss for i, loss in enumerate(self.losses)}
        found = checkpoint.Checkpoint(self.step, tensors, losses, {"fingerprint": self.fingerprint})
        checkpoint.save(self.checkpoint_dir, found)

    def _resume(self) -> None:
        self.world.check_alike(self.fingerprint)
        found = checkpoint.resume(
            self.checkpoint_dir,
            self.fingerprint,
            self.model,
            self.optimizer,
            steps=len(self.plan),
            newest=self.world.newest_checkpoint,
        )
        if found is not None:
            self.step = found.step
            self.losses = [found.numbers[name] for name in sorted(found.numbers)]

    def _fingerprint(self) -> str:
        """Identifies the run by its settings, its examples in their order and the weights it starts from."""
        names = set(SftSettings.model_fields) - {"checkpoint_every_steps"}
        settings = self.settings.model_dump_json(include=names)
        return checkpoint.fingerprint_of(self.model, (settings, *self.examples, *self.heldout))
