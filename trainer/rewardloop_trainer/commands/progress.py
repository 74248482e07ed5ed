"""Shows on standard error how far the writing, hashing and uploading of large files is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LEAST_BYTES = 256 * 2**20  # less is done before anybody asks
_EVERY_S = 10.0


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
