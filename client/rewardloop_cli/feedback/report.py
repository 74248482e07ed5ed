"""Shows the progress of an import: a bar over the file's bytes, the first rejections, and one line at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from rewardloop_cli.feedback.sending import Batch
from rewardloop_cli.feedback.summary import counted
from rewardloop_data.side_files import Progress as ImportProgress
from rewardloop_data.side_files import Rejection
from rewardloop_data.source_file import SourceFile


class Report:
    """Shows one file's import. The bar and the messages go to standard error, the summary to standard output.

    Args:
        source: The file.
        shown: How many rejections are shown.
        item: What a row becomes.
        taking_back: The command that takes an import back, without the import's id.
    """

    def __init__(
        self, source: SourceFile, *, shown: int, item: str = "signal", taking_back: str = "feedback retract"
    ) -> None:
        self._source = source
        self._item = item
        self._taking_back = taking_back
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

    def settled(self, batch: Batch[Any], progress: ImportProgress, rejections: Sequence[Rejection]) -> None:
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
            f"{self._source.name}: {counted(progress.rows, 'row')}, {counted(progress.recorded, self._item)} recorded, "
            f"{counted(progress.duplicates, 'duplicate')}{others}, {counted(progress.rejected, 'row')} rejected{kept}, "
            f"{seconds:.1f} s",
            flush=True,
        )
        if progress.recorded:
            back = f"rewardloop {self._taking_back} {progress.import_id}"
            print(f"import {progress.import_id}: '{back}' takes it back", flush=True)
