"""Says on standard error what a long command does, and how far the writing, hashing and uploading of large files is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rewardloop_trainer.data.computing.torchrun import is_started_first

_LEAST_BYTES = 256 * 2**20  # less is done before anybody asks
_EVERY_S = 10.0


class Stages:
    """Says in a command's name what it does next, a line for each stage. Of torchrun's processes the first one does."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._is_first = is_started_first()

    def __call__(self, what: str) -> None:
        """Say what begins now."""
        if self._is_first:
            print(f"{self._command}: {what}", file=sys.stderr, flush=True)


class Beginning:
    """Says where a run of training begins. Pass it to the run as ``on_start``.

    Make it before anything is loaded: it creates the directory of checkpoints, which a run deletes at its end, so that
    the next call knows that a run began and did not end.

    Args:
        checkpoints: The run's directory of checkpoints.
        stages: Says it.
        first: What a run that begins anew does before its first step; "": nothing.
    """

    def __init__(self, checkpoints: Path, stages: Stages, first: str = "") -> None:
        self._is_again = checkpoints.exists()
        self._stages, self._first = stages, first
        checkpoints.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int, steps: int) -> None:
        """Say where a run of ``steps`` steps begins of which a checkpoint holds ``step``."""
        if step:
            self._stages(f"going on after step {step:,} of {steps:,}, from a checkpoint")
            return
        if self._is_again:
            self._stages("starting over: an earlier run did not end, and left no checkpoint that this one can use")
        self._stages(f"training in {steps:,} steps" + (f", after {self._first}" if self._first else ""))


class FileProgress:
    """A bar on a terminal; elsewhere a line every 10 seconds. Small files are passed over."""

    def __init__(self, command: str) -> None:
        self._command = command
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._is_terminal = console.is_terminal
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_terminal:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are done."""
        if total < _LEAST_BYTES:
            return
        if self._is_terminal:
            if (what, total) not in self._tasks:
                self._tasks[what, total] = self._bar.add_task(what, total=total)
            self._bar.update(self._tasks[what, total], completed=done)
        elif done >= total or time.monotonic() - self._said_s >= _EVERY_S:
            self._said_s = time.monotonic()
            print(f"{self._command}: {what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB", file=sys.stderr, flush=True)
