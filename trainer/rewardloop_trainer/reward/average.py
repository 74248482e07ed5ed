"""Trains a reward model in several runs from one start, each on a share of the signals, and averages their weights.

Source: Wortsman et al. 2022 ("Model soups") and Ramé et al. 2024 ("WARM"). Runs that start from the same weights end in
one basin, and the mean of their weights generalises better than one long run, at the same cost as one pass over all
signals.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
import torch
from torch import Tensor

from rewardloop.formats.text import Encoder
from rewardloop_trainer.data.preferences import Record, pairs_of, weighing
from rewardloop_trainer.learning import checkpoint
from rewardloop_trainer.learning.model_load import device_of
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.reward.evaluate import HeldOut, head_margins, measure
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import Progress, TrainOutcome, add_parts, train_reward

log = structlog.get_logger()


def train_averaged(  # noqa: PLR0913 - what one run is made of and tells
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
    """Train as `train_reward`, in ``settings.averaged_runs`` runs.

    A killed call goes on in the run that it was in, because finished runs are kept under ``checkpoint_dir``. Arguments
    are those of `train_reward`, and several processes share the work in the same way. Steps are counted over all runs.

    Raises:
        ValueError: If a run's share has no training example, or the model has adapters: the mean of low-rank products
            is not the product of the mean factors.
        TrainingStopped: If ``should_stop`` returned true.
        NonFiniteGradients: If a step's gradients are not finite.
    """
    runs, world = settings.averaged_runs, World()
    if runs == 1:
        return train_reward(
            model, encoder, train, validation, settings, checkpoint_dir, on_progress, should_stop, on_start
        )
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("averaged runs train whole weights: set averaged_runs to 1 for adapters")
    add_parts(model, settings)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    start = _weights(model, names)
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
    figures: list[Mapping[str, float]] = []
    has_begun = False
    for run, share in enumerate(shares(train, runs, settings.seed)):
        _set(model, start)
        own = settings.model_copy(update={"seed": settings.seed + 1_000_003 * run})
        place = None if checkpoint_dir is None else checkpoint_dir / f"run-{run}"
        finished = None if checkpoint_dir is None else checkpoint_dir / f"finished-{run}"
        about = _fingerprint(own, share)
        if (done := _finished(finished, model, about, world)) is None:

            def report(progress: Progress, before: int = run) -> None:
                step = before * progress.steps + progress.step
                on_progress(replace(progress, step=step, steps=runs * progress.steps))

            def begin(step: int, steps: int, before: int = run, is_told: bool = has_begun) -> None:
                if not is_told:
                    on_start(before * steps + step, runs * steps)

            done = train_reward(model, encoder, share, validation, own, place, report, should_stop, begin).figures
            has_begun = True
            if finished is not None and world.is_first:
                kept = checkpoint.Checkpoint(int(done["train_steps"]), _weights(model, names), done, about)
                checkpoint.save(finished, kept)
        figures.append(done)
        for name, tensor in _weights(model, names).items():
            sums[name] += tensor.double()
    _set(model, {name: total / runs for name, total in sums.items()})
    model.eval()
    measured = measure_records(model, encoder, validation, settings)
    if checkpoint_dir is not None and world.is_first:
        checkpoint.clear(checkpoint_dir)
    world.wait()
    totals = _totals(figures)
    steps, best = int(totals["train_steps"]), int(totals["train_best_step"])
    return TrainOutcome(
        steps, best, measured, {**totals, **measured.figures("validation"), "train_averaged": float(runs)}
    )


def measure_records(
    model: RewardModel, encoder: Encoder, records: Sequence[Record], settings: RewardTraining
) -> HeldOut:
    """Measure a model on the pairs of records that weigh something; it ends on the CPU.

    The device is the one that the settings name.
    """
    pairs = pairs_of(weighing(records))
    model.to(device_of(settings))
    measured = measure(pairs, head_margins(model, encoder, pairs, 2 * settings.micro_batch_tokens))
    model.cpu()
    return measured


def shares(train: Sequence[Record], runs: int, seed: int) -> list[list[Record]]:
    """Divide the records at random into shares whose sizes differ by at most 1, each in the order of the records."""
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    return [[train[i] for i in sorted(order[run::runs])] for run in range(runs)]


def _totals(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of the runs' counts and seconds, and means of their last losses and of their starts' figures."""
    names = [name for name in figures[0] if name.startswith("train_") and all(name in each for each in figures)]
    totals = {name: sum(each[name] for each in figures) for name in names}
    means = {name for name in names if name == "train_last_loss" or name.startswith("train_start_")}
    return {name: total / len(figures) if name in means else total for name, total in totals.items()}


def _weights(model: RewardModel, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def _set(model: RewardModel, weights: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)


def _fingerprint(settings: RewardTraining, share: Sequence[Record]) -> dict[str, str]:
    digest = hashlib.sha256(settings.model_dump_json(exclude={"shard"}).encode())
    for record in share:
        digest.update(repr(record).encode())
    return {"fingerprint": digest.hexdigest()}


def _finished(
    kept: Path | None, model: RewardModel, about: Mapping[str, str], world: World
) -> Mapping[str, float] | None:
    """The figures of a run that was finished before, with its weights loaded into the model; None without one."""
    if kept is None:
        return None
    try:
        found = world.newest_checkpoint(kept)
    except checkpoint.CorruptCheckpoint as error:
        log.warning("training a finished run again, because it cannot be read", reason=str(error))
        return None
    if found is None or found.texts != about:
        return None
    _set(model, found.tensors)
    return found.numbers
