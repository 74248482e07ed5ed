"""Trains a reward model on preference records. A killed run goes on from its checkpoint to the same weights."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.computing.shards import (
    as_held,
    divide,
    has_weights,
    is_divided,
    make_whole,
    whole_in_first,
)
from rewardloop_trainer.data.preferences import Record, pairs_of, weighing
from rewardloop_trainer.data.token_batches import rate_scale
from rewardloop_trainer.data.weights.influence import cap_influence
from rewardloop_trainer.data.weights.length_balance import balance_length
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.bounded_step import backward_in_parts
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.gradients import clip
from rewardloop_trainer.learning.layers import layer_stack
from rewardloop_trainer.learning.memory_estimate import check_memory
from rewardloop_trainer.learning.model_load import UnusableDevice, device_of, prepare, release, set_type
from rewardloop_trainer.learning.run_control import NothingToLearnFrom
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.reward.evaluate import HeldOut, head_margins, measure
from rewardloop_trainer.reward.examples import (
    Example,
    Examples,
    distinct_of,
    encode_records,
    forward,
    logits_of,
    plan_steps,
)
from rewardloop_trainer.reward.linear_start.fit import fit_linear_start
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.step import optimizer_of, step_accuracy, step_loss

_LEVEL_STEPS = 4
# Keeps the random streams of different seeds apart.
_SEED_PRIME = 1_000_003


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run after one step.

    Attributes:
        step: Steps done so far, from 1.
        steps: Steps of the whole run.
        loss: Loss of the step, in nats, from before the step.
        accuracy: Share of the step's comparisons in the right order.
        tokens_per_second: Real tokens per second, over the run so far.
        validation: Figures of an evaluation that followed this step, if one did.
        gradient_norm: Norm of the gradients before clipping.
        seconds: Wall-clock time of the step.
    """

    step: int
    steps: int
    loss: float
    accuracy: float
    tokens_per_second: float
    validation: HeldOut | None = None
    gradient_norm: float = math.nan
    seconds: float = math.nan


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """The result of a finished run.

    Attributes:
        steps: Optimizer steps done.
        best_step: The step that the model's weights are from: that of the least loss on the validation pairs, 0 for
            the start, or the last one without such pairs.
        validation: Figures of those weights on the validation pairs.
        figures: For the manifest.
    """

    steps: int
    best_step: int
    validation: HeldOut
    figures: Mapping[str, float]


@dataclass(slots=True)
class _Position:
    """The position of a run, which a checkpoint keeps. ``best_loss`` is infinite before the first evaluation."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    misses: int = 0
    seconds: float = 0.0
    tokens: int = 0
    last_loss: float = 0.0


def train_reward(  # noqa: PLR0913 - what one run is made of and tells
    model: RewardModel,
    encoder: Encoder,
    train: Sequence[Record],
    validation: Sequence[Record],
    settings: RewardTraining,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_start: Callable[[int, int], None] = lambda _, __: None,
) -> TrainOutcome:
    """Train ``model`` in place; it ends with the weights that had the least validation loss, in float32 on the CPU.

    If the settings divide it among processes, it does so in the first process alone.

    It learns on the device and in the type that the settings name. If torch.distributed is initialised, every process
    makes this call and learns from its share of each step; the first process's checkpoint counts.

    With the same arguments and a checkpoint in ``checkpoint_dir``, the run goes on from it; the weights are then those
    of an uninterrupted run, bit for bit on one kind of CPU and number of threads. A checkpoint of other data, settings
    or heads, or one that cannot be read, is logged and ignored. The directory is emptied at the end.

    Args:
        model: The model, trained from its present weights.
        encoder: The model's tokenizer and text layout.
        train: Records to learn from.
        validation: Records by whose pairs the weights are chosen; may be empty. None of them may judge the result.
        settings: The settings of the loss and the optimizer.
        checkpoint_dir: Where checkpoints are kept; None: nowhere.
        on_progress: Called after each step.
        should_stop: Asked before each step.
        on_start: Called before the linear start and the first step with the steps that a checkpoint holds, 0 if the
            run begins anew, and those of the whole run.

    Raises:
        NothingToLearnFrom: If no record is left to train on.
        ValueError: If the processes were not all given the same data and settings.
        UnusableDevice: If this machine cannot train as the settings ask.
        TrainingStopped: If ``should_stop`` returned true in any process; the checkpoint is written.
        NonFiniteGradients: If a step's gradients are not finite.
    """
    if settings.shard and model.pooling == "layers":
        raise UnusableDevice("shard needs another pooling than layers, whose heads read a layer within the model")
    train = cap_influence(weighing(train), settings.most_person_share, settings.most_source_share)
    if settings.length_balance:
        train = balance_length(train)
    encoded = encode_records(encoder, train, settings.over_length)
    if not encoded.examples:
        raise NothingToLearnFrom(
            f"there is nothing to train on: of {len(train)} records, {encoded.dropped} have no form in the model's "
            "text format"
            + (f" or are longer than {encoder.max_length} tokens" if settings.over_length == "drop" else "")
        )
    longest = max(example.longest for example in encoded.examples)
    check_memory(model.config, settings, "reward", tokens=settings.micro_batch_tokens, longest=longest)
    add_parts(model, settings)
    prepare(model, model.trunk, settings)
    try:
        if settings.shard:
            shortest = min((s for e in encoded.examples for s in e.sequences), key=lambda s: len(s.ids))
            idle = partial(forward, model, [shortest], encoder.format.pad)
            divide(model, model.trunk, layer_stack(model.trunk), idle, device_of(settings))
        run = RewardRun(
            model, encoder, encoded, validation, settings, checkpoint_dir, on_progress, should_stop, on_start
        )
        return run.to_the_end()
    finally:
        release(model, model.trunk)
        if has_weights(model):
            model.cpu()
            set_type(model, torch.float32)


def add_parts(model: RewardModel, settings: RewardTraining) -> None:
    """Give the model the parts that the settings ask for. A score of steps has no sum over all tokens beside it."""
    if model.steps is not None:
        return
    if settings.words:
        model.add_words()
    if settings.phrases:
        model.add_phrases()


class RewardRun:
    """One run of reward training: its model, its optimizer and its position, which checkpoints keep."""

    def __init__(  # noqa: PLR0913 - what one run is made of and tells
        self,
        model: RewardModel,
        encoder: Encoder,
        encoded: Examples,
        validation: Sequence[Record],
        settings: RewardTraining,
        checkpoint_dir: Path | None,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        on_start: Callable[[int, int], None],
    ) -> None:
        self.model, self.encoder, self.settings = model, encoder, settings
        self.encoded, self.examples = encoded, encoded.examples
        self.validation_pairs = pairs_of(validation)
        self.checkpoint_dir, self.on_progress, self.should_stop = checkpoint_dir, on_progress, should_stop
        self.on_start = on_start
        self.world = World()
        self.optimizer = optimizer_of(model, settings)
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.best: dict[str, Tensor] = {}
        self.level = torch.zeros(model.heads.out_features)
        self.at = _Position()
        self.start_figures: Mapping[str, float] = {}
        self.plan = [
            [self.examples[i] for i in indices]
            for epoch in range(settings.epochs)
            for indices in plan_steps(
                self.examples, settings.sequences_per_step, settings.megabatch_steps, settings.seed, epoch
            )
        ]
        self.steps_per_epoch = max(1, len(self.plan) // max(1, settings.epochs))

    def to_the_end(self) -> TrainOutcome:
        """Take the remaining steps, keep the best weights, and measure."""
        self._resume()
        # Evaluation mode differs only in dropout, also in the attention kernels.
        self.model.train(self.settings.dropout)
        last: HeldOut | None = None
        while self.at.step < len(self.plan) and self.at.misses < self.settings.patience:
            if self.world.largest(float(self.should_stop())):
                self._checkpoint()
                raise TrainingStopped(f"stopped after step {self.at.step} of {len(self.plan)}")
            progress = self._step(self.plan[self.at.step])
            last = None
            if self._evaluation_is_due():
                last = self._evaluate()
                progress = replace(progress, validation=last)
            every = self.settings.checkpoint_every_steps
            if every and self.at.step % every == 0:
                self._checkpoint()
            self.on_progress(progress)
        if self.best and self.at.best_step != self.at.step:
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    parameter.copy_(self.best[name])
            last = None
        self.model.eval()
        measured = last or self._measure()
        make_whole(self.model)
        if self.checkpoint_dir is not None and self.world.is_first:
            checkpoint.clear(self.checkpoint_dir)
        self.world.wait()
        return TrainOutcome(self.at.step, self._best_step, measured, self._figures(measured))

    @property
    def _best_step(self) -> int:
        return self.at.best_step if self.best else self.at.step

    def _step(self, examples: Sequence[Example]) -> Progress:
        started = time.perf_counter()
        scale = rate_scale(self.at.step, len(self.plan), self.settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss, logits = self._gradients(examples)
        self.world.sum_gradients(self.trainable.values())
        gradient_norm = clip(self.trainable.values(), self.settings.clip_norm)
        self.optimizer.step()
        self.at.step += 1
        self.at.tokens += sum(len(s.ids) for e in examples for s in e.sequences)
        seconds = time.perf_counter() - started
        self.at.seconds += seconds
        self.at.last_loss = loss.item()
        speed = self.at.tokens / self.at.seconds
        return Progress(
            self.at.step,
            len(self.plan),
            self.at.last_loss,
            step_accuracy(logits, examples),
            speed,
            gradient_norm=gradient_norm,
            seconds=seconds,
        )

    def _gradients(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Compute this process's share of the gradients. Returns the step's loss and logits, (sequences, k)."""
        firsts, places = distinct_of([s for e in examples for s in e.sequences])

        def run(chosen: Sequence[int]) -> Tensor:
            return forward(self.model, [firsts[i] for i in chosen], self.encoder.format.pad)

        def loss_of(logits: Tensor) -> Tensor:
            return step_loss(logits[places], self.model.threshold.cpu(), examples, self.settings, self.level)

        if self.world.size > 1 and self.model.training:  # each process draws a dropout of its own
            torch.manual_seed((self.settings.seed * _SEED_PRIME + self.at.step) * self.world.size + self.world.rank)
        lengths = [len(s.ids) for s in firsts]
        budget, in_step = self.settings.micro_batch_tokens, is_divided(self.model)
        loss, logits = backward_in_parts(lengths, run, loss_of, budget, self.world, in_step=in_step)
        return loss, logits[places]

    def _evaluation_is_due(self) -> bool:
        if not self.validation_pairs:
            return False
        every = self.settings.evaluate_every_steps
        return self.at.step % self.steps_per_epoch == 0 or bool(every and self.at.step % every == 0)

    def _evaluate(self) -> HeldOut:
        measured = self._measure()
        if measured.loss < self.at.best_loss:
            self.at.best_loss, self.at.best_step, self.at.misses = measured.loss, self.at.step, 0
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in self.trainable.items()}
        else:
            self.at.misses += 1
        return measured

    def _measure(self) -> HeldOut:
        budget = 2 * self.settings.micro_batch_tokens
        mine = head_margins(self.model, self.encoder, self.world.mine(self.validation_pairs), budget)
        margins = self.world.gather_rows(torch.from_numpy(mine), len(self.validation_pairs))
        return measure(self.validation_pairs, margins.numpy())

    def _figures(self, measured: HeldOut) -> dict[str, float]:
        return {
            **measured.figures("validation"),
            **{f"train_{name}": value for name, value in self.start_figures.items()},
            "train_steps": float(self.at.step),
            "train_best_step": float(self._best_step),
            "train_examples": float(len(self.examples)),
            "train_truncated": float(self.encoded.truncated),
            "train_dropped_over_length": float(self.encoded.dropped),
            "train_tokens": float(self.at.tokens),
            "train_seconds": self.at.seconds,
            "train_last_loss": self.at.last_loss,
        }

    def _checkpoint(self) -> None:
        if self.checkpoint_dir is None:
            return
        tensors = checkpoint.training_tensors(self.model, self.optimizer)
        tensors |= {f"best.{name}": whole_in_first(tensor) for name, tensor in self.best.items()}
        if not self.world.is_first:
            return
        tensors["level"] = self.level
        numbers = {name: float(getattr(self.at, name)) for name in _Position.__slots__}
        state = checkpoint.Checkpoint(self.at.step, tensors, numbers, {"fingerprint": self._fingerprint})
        checkpoint.save(self.checkpoint_dir, state)

    def _resume(self) -> None:
        fingerprint = self._fingerprint if self.checkpoint_dir or self.world.size > 1 else ""
        self.world.check_alike(fingerprint)
        found = checkpoint.resume(
            self.checkpoint_dir,
            fingerprint,
            self.model,
            self.optimizer,
            steps=len(self.plan),
            newest=self.world.newest_checkpoint,
        )
        self.on_start(0 if found is None else found.step, len(self.plan))
        if found is None:
            self._start_anew()
            return
        # A checkpoint without a level was written by a run that was centred on 0, and goes on so.
        self.level = found.tensors.get("level", self.level)
        best = {n.removeprefix("best."): t for n, t in found.tensors.items() if n.startswith("best.")}
        self.best = {name: as_held(tensor, self.trainable[name]).to("cpu") for name, tensor in best.items()}
        kinds = {name: type(getattr(self.at, name)) for name in _Position.__slots__}
        self.at = _Position(**{name: kinds[name](found.numbers[name]) for name in kinds})

    def _start_anew(self) -> None:
        """Fit the linear part, and note the weights that the steps have to beat on the validation pairs."""
        if self.settings.linear_start:
            pad = self.encoder.format.pad
            self.start_figures = fit_linear_start(self.model, self.examples, pad, self.settings)
        self._take_level()
        if self.validation_pairs:
            self.at.best_loss = self._measure().loss
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in self.trainable.items()}

    def _take_level(self) -> None:
        """Measure the mean logit of each head on the first steps' sequences, before anything is learned.

        A threshold of thumbs and ratings that was never trained starts there, too. Otherwise labels would pull a
        trained model's level to 0.
        """
        first = self.plan[:_LEVEL_STEPS] or [list(self.examples[: _LEVEL_STEPS * self.settings.sequences_per_step])]
        sequences = [s for examples in first for e in examples for s in e.sequences]
        self.model.eval()
        with torch.no_grad():
            logits = logits_of(self.model, sequences, self.encoder.format.pad, 2 * self.settings.micro_batch_tokens)
            self.level = logits.mean(0)
            if not self.model.threshold.any():
                self.model.threshold.copy_(self.level)

    @cached_property
    def _fingerprint(self) -> str:
        """Identify the run by its settings, its data in their order, and the shapes that are trained."""
        digest = hashlib.sha256(self.settings.model_dump_json(exclude={"shard"}).encode())
        for example in self.examples:
            digest.update(example.key.encode())
            for sequence in example.sequences:
                digest.update(repr(sequence.ids).encode())
        for pair in self.validation_pairs:
            digest.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode())
        for name, parameter in self.trainable.items():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
        return digest.hexdigest()
