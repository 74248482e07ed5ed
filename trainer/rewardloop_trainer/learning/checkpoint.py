"""Training checkpoints as safetensors and JSON, never pickle.

``<directory>/<step>/`` holds ``tensors.safetensors`` and ``state.json``. It is written under another name and renamed
when it is complete; a directory under another name is an unfinished write and is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rewardloop_trainer.data.computing.shards import as_held, whole, whole_in_first

log = structlog.get_logger()

Keep: TypeAlias = Callable[[str, Tensor], Tensor]

TENSORS = "tensors.safetensors"
STATE = "state.json"


class TrainingStopped(Exception):
    """Raised when ``should_stop`` returned true. A checkpoint is written, from which the same call goes on."""


class CorruptCheckpoint(Exception):
    """Raised when a checkpoint's files are missing, cannot be read or do not fit the model."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        step: Optimizer steps done.
        tensors: Weights, optimizer state and random state, by name.
        numbers: Numbers of the caller's position, by name.
        texts: Texts of the caller's position, by name; always with ``fingerprint``, which identifies the run.
    """

    step: int
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    texts: Mapping[str, str]


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint durably, then delete older ones. Returns its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / str(checkpoint.step)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=directory))
    try:
        save_file(_separate(checkpoint.tensors), staging / TENSORS)
        state = {"step": checkpoint.step, "numbers": dict(checkpoint.numbers), "texts": dict(checkpoint.texts)}
        (staging / STATE).write_text(json.dumps(state, indent=2, sort_keys=True))
        for path in (staging / TENSORS, staging / STATE, staging):
            _fsync(path)
        if target.exists():  # left by a run that was not resumed
            shutil.rmtree(target)
        staging.rename(target)
        _fsync(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for step in _steps(directory):
        if step < checkpoint.step:
            shutil.rmtree(directory / str(step))
    return target


def all_of(_: str, tensor: Tensor) -> Tensor:
    """Keep a checkpoint's tensor as it is."""
    return tensor


def latest(directory: Path, keep: Keep = all_of) -> Checkpoint | None:
    """The checkpoint with the most steps; None if there is none. Raises `CorruptCheckpoint`.

    Args:
        directory: Where checkpoints are kept.
        keep: Maps each tensor, given its name, to what is kept of it.
    """
    steps = _steps(directory)
    if not steps:
        return None
    path = directory / str(steps[-1])
    try:
        state = json.loads((path / STATE).read_text())
        tensors = {name: keep(name, tensor) for name, tensor in load_file(path / TENSORS).items()}
        return Checkpoint(int(state["step"]), tensors, state["numbers"], state["texts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{path}: {error}") from error


def clear(directory: Path) -> None:
    """Delete all checkpoints, after the run that they belong to has ended."""
    shutil.rmtree(directory, ignore_errors=True)


def resume(
    directory: Path | None,
    fingerprint: str,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    steps: int,
    newest: Callable[[Path, Keep], Checkpoint | None] = latest,
) -> Checkpoint | None:
    """Restore the weights and optimizer of a run that was cut short.

    A checkpoint of another run, or one that cannot be read, is logged and ignored.

    Args:
        directory: Where checkpoints are kept; None: nowhere.
        fingerprint: Identifies the run.
        model: The model to restore.
        optimizer: The optimizer to restore.
        steps: Steps of the whole run, for the log.
        newest: Finds the newest checkpoint, and keeps of each tensor what it is told.

    Returns:
        The checkpoint, for the caller's position; None if the run has to begin.
    """
    if directory is None:
        return None
    try:
        found = newest(directory, partial(_held, _trainable(model)))
        if found is None:
            return None
        if found.texts["fingerprint"] != fingerprint:
            log.warning("ignoring a checkpoint of another training run", directory=str(directory))
            return None
        restore_training(model, optimizer, found.tensors)
    except CorruptCheckpoint as error:
        log.warning("ignoring a checkpoint that cannot be used", reason=str(error))
        return None
    log.info("continuing from a checkpoint", step=found.step, steps=steps)
    return found


def fingerprint_of(model: nn.Module, data: Iterable[object]) -> str:
    """Identify a run by the weights that it starts from and by ``data`` in their order, compared by repr."""
    digest = hashlib.sha256()
    for item in data:
        digest.update(repr(item).encode())
    for name, parameter in model.named_parameters():
        values = whole(parameter.detach()).double()
        digest.update(f"{name}{tuple(parameter.shape)}{values.sum().item()}{values.norm().item()}".encode())
    return digest.hexdigest()


def training_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors that training changes: trainable parameters, optimizer moments and torch's random state, by name.

    All processes make this call. Those of a divided model are whole in the first process, and empty in the others.
    """
    tensors = {"random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.gpu"] = torch.cuda.get_rng_state()
    for name, parameter in _trainable(model).items():
        tensors[f"model.{name}"] = whole_in_first(parameter.data)
        for key, value in optimizer.state.get(parameter, {}).items():
            found = whole_in_first(value) if isinstance(value, Tensor) else torch.tensor(value)
            tensors[f"optimizer.{key}.{name}"] = found
    return tensors


def restore_training(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `training_tensors` returned, bit for bit. Raises `CorruptCheckpoint` if the model is another."""
    parameters = _trainable(model)
    expected = {f"model.{name}" for name in parameters}
    if expected != {name for name in tensors if name.startswith("model.")}:
        raise CorruptCheckpoint("the checkpoint has other parameters than the model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            stored = tensors[f"model.{name}"]
            if stored.shape != parameter.shape:
                raise CorruptCheckpoint(f"{name} has shape {tuple(stored.shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(as_held(stored, parameter))
            prefix_and_key = [n for n in tensors if n.startswith("optimizer.") and n.split(".", 2)[2] == name]
            for full in prefix_and_key:
                held = _held(parameters, full, tensors[full]).to(parameter.device)
                optimizer.state[parameter][full.split(".", 2)[1]] = held.clone()
    torch.set_rng_state(tensors["random.torch"])
    if "random.gpu" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.gpu"])


def _held(parameters: Mapping[str, nn.Parameter], name: str, tensor: Tensor) -> Tensor:
    """Return this process's part of a checkpoint's tensor with a parameter's shape; other tensors as they are."""
    kind, _, own = name.partition(".")
    parameter = parameters.get(own.partition(".")[2] if kind == "optimizer" else own)
    return tensor if parameter is None or tensor.shape != parameter.shape else as_held(tensor, parameter)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, as safetensors wants them: contiguous, and no two with one storage.

    The others are not copied: a copy of weights and moments would be the most memory that a run ever takes.
    """
    found: dict[str, Tensor] = {}
    seen = set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.is_dir() and p.name.isdecimal())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
