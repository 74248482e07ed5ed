"""Shows the progress of an import: a bar over the file's bytes, the first rejections, and one line at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from rewardloop.v1 import feedback_pb2
from rewardloop_data.side_files import Progress as ImportProgress
from rewardloop_data.side_files import Rejection
from rewardloop_data.source_file import Line, SourceFile


class Report:
    """Shows one file's import. The bar and the messages go to standard error, the summary to standard output."""

    def __init__(self, source: SourceFile, *, shown: int) -> None:
        self._source = source
        self._left_to_show = shown
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rows]} rows"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(escape(source.name), total=source.size, rows=0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        self._console.print(f"rewardloop: {message}", markup=False)

    def fail(self, message: str) -> None:
        self._bar.stop()
        self.say(message)

    def settled(self, batch: Batch, progress: ImportProgress, rejections: Sequence[Rejection]) -> None:
        self._bar.update(self._task, completed=batch.last.offset, rows=progress.rows)
        for rejection in rejections[: self._left_to_show]:
            self.say(f"{self._source.name}:{rejection.line}: {rejection.reason}")
        if self._left_to_show and len(rejections) > self._left_to_show:
            self.say("more rejected rows are in the side file only")
        self._left_to_show = max(0, self._left_to_show - len(rejections))

    def summary(self, progress: ImportProgress, seconds: float, rejected_path: Path) -> None:
        self._bar.stop()
        kept = f" (kept in {rejected_path})" if progress.rejected else ""
        others = f" ({progress.relabelled} with other labels, which they keep)" if progress.relabelled else ""
        print(
            f"{self._source.name}: {progress.rows} rows, {progress.recorded} signals recorded, "
            f"{progress.duplicates} duplicates{others}, {progress.rejected} rows rejected{kept}, {seconds:.1f} s",
            f"import {progress.import_id}: 'rewardloop feedback retract {progress.import_id}' takes it back",
            sep="\n",
            flush=True,
        )


@dataclass(slots=True)
class Batch:
    """Rows that are sent together: their signals, and the rows that are no signals. ``last`` is its last line."""

    last: Line
    rows: int = 0
    bytes: int = 0
    events: list[feedback_pb2.FeedbackEvent] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)  # the line of each event
    rejections: list[Rejection] = field(default_factory=list)
