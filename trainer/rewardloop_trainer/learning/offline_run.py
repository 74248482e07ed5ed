"""The optimizer steps of learning from data that stays as it is; a killed run goes on from its checkpoint to the same
weights, and several processes take the same steps as one would."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rewardloop_trainer.data.batches import rate_scale
from rewardloop_trainer.data.completions import Completion, sequence_logprobs
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.gradients import clip
from rewardloop_trainer.learning.settings import OfflineSettings
from rewardloop_trainer.learning.world import World

FiguresT = TypeVar("FiguresT")


@dataclass(frozen=True, slots=True)
class Progress(Generic[FiguresT]):
    """After a step; ``figures`` are of its items, from before it. ``gradient_norm``: before clipping. ``seconds``: that
    the step took."""

    step: int
    steps: int
    figures: FiguresT
    gradient_norm: float = 0.0
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """``figures`` are for the manifest."""

    steps: int
    figures: Mapping[str, float]


class OfflineRun:
    """A model with its optimizer, and the steps that are before it: which items each learns from, and at what rate."""

    def __init__(
        self,
        model: Any,
        pad_id: int,
        plan: Sequence[Sequence[int]],
        settings: OfflineSettings,
        data: Iterable[object],
        checkpoint_dir: Path | None,
    ) -> None:
        """``plan``: the items of each step; ``data``: what, beside the model's weights, tells this run from others, by
        repr."""
        self.world = World()
        self.model, self.pad, self.settings, self.checkpoint_dir = model, pad_id, settings, checkpoint_dir
        self.model.eval()  # no dropout in policy and reference
        self.fingerprint = checkpoint.fingerprint_of(model, data)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )
        self.plan = plan[: settings.max_steps or None]
        self.step = 0
        self.gradient_norm = 0.0  # of the last step

    def take_steps(
        self,
        learn: Callable[[Sequence[int]], FiguresT],
        on_progress: Callable[[Progress[FiguresT]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Those that are left: ``learn`` is called with the items of each. Raises `TrainingStopped` when asked to stop,
        and ValueError when the processes were not all given the same."""
        self._resume()
        while self.step < len(self.plan):
            if self.world.largest(float(should_stop())):
                self._checkpoint()
                raise TrainingStopped(f"stopped after step {self.step} of {len(self.plan)}")
            began = time.monotonic()
            figures = learn(self.plan[self.step])
            self.step += 1
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0:
                self._checkpoint()
            seconds = time.monotonic() - began
            on_progress(Progress(self.step, len(self.plan), figures, self.gradient_norm, seconds))

    def descend(self, losses: Iterable[Tensor]) -> None:
        """One optimizer step down the sum of ``losses`` over all micro-batches and processes."""
        scale = rate_scale(self.step, len(self.plan), self.settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        self.world.sum_gradients(self.parameters)
        self.gradient_norm = clip(self.parameters, self.settings.clip_norm)
        self.optimizer.step()

    def logprobs(self, items: Sequence[Sequence[Completion]], per_item: int) -> Tensor:
        """(items, ``per_item``): of the completions of each, summed over tokens, under the model as it is."""
        rows = [row for item in self.world.mine(items) for row in item]
        mine = sequence_logprobs(self.model, rows, self.pad, 2 * self.settings.micro_batch_tokens)
        return self.world.gather_rows(mine.view(-1, per_item), len(items))

    def end(self, figures: Mapping[str, float], save: Callable[[PolicyOutcome], None]) -> PolicyOutcome:
        """The first process saves; then the checkpoints are deleted."""
        outcome = PolicyOutcome(self.step, {"train_steps": float(self.step), **figures})
        if self.world.is_first:
            save(outcome)
            if self.checkpoint_dir is not None:
                checkpoint.clear(self.checkpoint_dir)
        self.world.wait()
        return outcome

    def _checkpoint(self) -> None:
        if self.checkpoint_dir is None or not self.world.is_first:
            return
        tensors = checkpoint.training_tensors(self.model, self.optimizer)
        texts = {"fingerprint": self.fingerprint}
        checkpoint.save(self.checkpoint_dir, checkpoint.Checkpoint(self.step, tensors, {}, texts))

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


def sample_to_compare(trained: int, heldout: int, seed: int) -> list[int]:
    """Places of as many training items as are held out, to be measured beside those: what was learned by heart shows,
    at no more than the held-out items' cost."""
    return random.Random(seed).sample(range(trained), min(trained, heldout))
