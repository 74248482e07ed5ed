"""The optimizer steps of learning from data that does not change during the run.

A killed run goes on from its checkpoint to the same weights, and several processes take the same steps as one would.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from rewardloop_trainer.data.completions import Completion, sequence_logprobs
from rewardloop_trainer.data.computing.shards import make_whole
from rewardloop_trainer.data.token_batches import rate_scale
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.gradients import clip
from rewardloop_trainer.learning.lora_layers import has_adapters
from rewardloop_trainer.learning.optimizer import adamw
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.settings import OfflineSettings
from rewardloop_trainer.learning.world import World

FiguresT = TypeVar("FiguresT")


@dataclass(frozen=True, slots=True)
class Progress(Generic[FiguresT]):
    """The progress of a run after one step.

    Attributes:
        step: Steps done so far, from 1.
        steps: Steps of the whole run.
        figures: Figures of the step's items, from before the step.
        gradient_norm: Norm of the step's gradients before clipping.
        seconds: Wall-clock time of the step.
    """

    step: int
    steps: int
    figures: FiguresT
    gradient_norm: float = 0.0
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """The result of a finished run; ``figures`` are for the manifest."""

    steps: int
    figures: Mapping[str, float]


class OfflineRun(Generic[FiguresT]):
    """A model with its optimizer, and the steps of a run: the items that each learns from, and its learning rate."""

    def __init__(
        self,
        model: Any,
        pad_id: int,
        plan: Sequence[Sequence[int]],
        settings: OfflineSettings,
        data: Iterable[object],
        control: RunControl[Progress[FiguresT], PolicyOutcome],
    ) -> None:
        """Prepare the run; nothing is read or written yet.

        Args:
            model: A Hugging Face causal LM, trained in place.
            pad_id: Token id of padding.
            plan: The indices of the items of each step.
            settings: The settings of the optimizer and of checkpoints.
            data: What, beside the model's weights, distinguishes this run from others; compared by repr.
            control: Checkpoint directory and callbacks.
        """
        self.world = World()
        self.model, self.pad, self.settings, self.control = model, pad_id, settings, control
        self.model.eval()  # no dropout in policy and reference
        self.fingerprint = checkpoint.fingerprint_of(model, data)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        learning = sum(p.numel() for p in self.parameters)
        self.rate = settings.rate_for(learning, are_adapters=has_adapters(model))
        group = {"params": self.parameters, "weight_decay": settings.weight_decay}
        self.optimizer = adamw([group], learning_rate=self.rate, betas=(0.9, 0.95))
        self.plan = plan[: settings.max_steps or None]
        self.step = 0
        self.gradient_norm = 0.0  # of the last step

    def take_steps(self, learn: Callable[[Sequence[int]], FiguresT]) -> None:
        """Run the remaining steps, calling ``learn`` once per step with the indices of its items.

        Raises:
            TrainingStopped: If ``control.should_stop`` asked for it.
            ValueError: If the processes were not all given the same weights, data and settings.
            NonFiniteGradients: If a step's gradients are not finite.
        """
        self._resume()
        self.control.on_start(self.step, len(self.plan))
        while self.step < len(self.plan):
            if self.world.largest(float(self.control.should_stop())):
                self._checkpoint()
                raise TrainingStopped(f"stopped after step {self.step} of {len(self.plan)}")
            began = time.monotonic()
            figures = learn(self.plan[self.step])
            self.step += 1
            every = self.settings.checkpoint_every_steps
            if every and self.step % every == 0:
                self._checkpoint()
            seconds = time.monotonic() - began
            self.control.on_step(Progress(self.step, len(self.plan), figures, self.gradient_norm, seconds))

    def descend(self, losses: Iterable[Tensor]) -> None:
        """Take one optimizer step on the sum of ``losses``, (), over all micro-batches and processes."""
        scale = rate_scale(self.step, len(self.plan), self.settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        self.world.sum_gradients(self.parameters)
        self.gradient_norm = clip(self.parameters, self.settings.clip_norm)
        self.optimizer.step()

    def logprobs(self, items: Sequence[Sequence[Completion]], per_item: int, model: Any | None = None) -> Tensor:
        """Log-probabilities of each item's completions under a model as it is, summed over tokens.

        Each process computes its share of the items.

        Args:
            items: Each with ``per_item`` completions.
            per_item: Completions of one item.
            model: A causal LM in evaluation mode; None: the one that learns.

        Returns:
            (items, per_item), in nats.
        """
        rows = [row for item in self.world.mine(items) for row in item]
        learner = self.model if model is None else model
        mine = sequence_logprobs(learner, rows, self.pad, self.settings.micro_batch_tokens)
        return self.world.gather_rows(mine.view(-1, per_item), len(items))

    def end(self, figures: Mapping[str, float]) -> PolicyOutcome:
        """Let the first process save, then delete the checkpoints. Returns what was saved."""
        make_whole(self.model)
        outcome = PolicyOutcome(self.step, {"train_steps": float(self.step), "train_rate": self.rate, **figures})
        if self.world.is_first:
            self.control.save(outcome)
            if self.control.checkpoint_dir is not None:
                checkpoint.clear(self.control.checkpoint_dir)
        self.world.wait()
        return outcome

    def _checkpoint(self) -> None:
        if self.control.checkpoint_dir is None:
            return
        tensors = checkpoint.training_tensors(self.model, self.optimizer)
        if not self.world.is_first:
            return
        texts = {"fingerprint": self.fingerprint}
        checkpoint.save(self.control.checkpoint_dir, checkpoint.Checkpoint(self.step, tensors, {}, texts))

    def _resume(self) -> None:
        self.world.check_alike(self.fingerprint)
        found = checkpoint.resume(
            self.control.checkpoint_dir,
            self.fingerprint,
            self.model,
            self.optimizer,
            steps=len(self.plan),
            newest=self.world.newest_checkpoint,
        )
        if found is not None:
            self.step = found.step


def sample_to_compare(trained: int, heldout: int, seed: int) -> list[int]:
    """Indices of training items to measure beside the held-out items.

    As many are drawn as are held out, so that measuring them costs no more. A gap between the two shows what was
    learned by heart.
    """
    return random.Random(seed).sample(range(trained), min(trained, heldout))
