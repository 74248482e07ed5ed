"""The agreement between a training run and its caller: checkpoints, progress, stopping and saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

StepT = TypeVar("StepT")
SavedT = TypeVar("SavedT")


class NothingToLearnFrom(ValueError):
    """Raised when no example can be learned from. The message says how many there were, and why none is left."""


def _ignore(*_: Any) -> None:
    """The caller does not want to know."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RunControl(Generic[StepT, SavedT]):
    """The checkpoint directory and the callbacks of a run.

    Attributes:
        checkpoint_dir: Checkpoints are written here, and the run goes on from one that is here. None: no checkpoints.
            A checkpoint of another run, or one that cannot be read, is logged and ignored. The directory is emptied
            when the run has ended.
        on_step: Called after each optimizer step, in every process.
        should_stop: Asked before each step. If it returns true in any process, the run writes a checkpoint and raises
            `TrainingStopped` in all of them.
        save: Called once, in the first process, when the last step is done and before the checkpoints are deleted, so
            that a process that is killed while it saves does not lose the run.
        on_start: Called before the first step, in every process, with the steps that a checkpoint holds and those of
            the whole run. The former are 0 if the run begins anew.
    """

    checkpoint_dir: Path | None = None
    on_step: Callable[[StepT], None] = _ignore
    should_stop: Callable[[], bool] = _never
    save: Callable[[SavedT], None] = _ignore
    on_start: Callable[[int, int], None] = _ignore


NO_CONTROL: RunControl[Any, Any] = RunControl()
