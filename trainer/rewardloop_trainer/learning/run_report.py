"""The report of a run: a printed line, a row and TensorBoard scalars for each step, and a picture of all steps.

``steps.jsonl`` is the source. The event file and ``report.png`` are made from it. A run that continues from a
checkpoint repeats its last steps; each step is nevertheless in each file once. ``notes.txt`` says why a run ended
early, if it did.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rewardloop_trainer.learning.run_rows import STEPS, TOKENS_PER_S, StepDone, StepRow, read_steps

log = structlog.get_logger()


FIGURE = "report.png"
NOTES = "notes.txt"


class RunReport:
    """Keeps the report in ``directory`` up to date; pass it to a run as ``on_step``.

    Without tensorboardX there is no event file and without matplotlib no picture; a warning says so. Methods raise
    OSError if the directory cannot be written.

    Args:
        directory: The directory to write.
        draw_every: Steps after which the picture is drawn again.
        console: Prints each step's line, and shows a progress bar if it is a terminal; None: nothing is printed.
    """

    def __init__(self, directory: Path, *, draw_every: int = 10, console: Console | None = None) -> None:
        self._directory, self._draw_every, self._console = directory, draw_every, console
        self._rows: list[StepRow] = []
        self._events: Any = None
        self._bar: Progress | None = None
        self._has_begun = False
        self._can_draw = find_spec("matplotlib") is not None
        if not self._can_draw:
            log.warning("no picture of the run will be drawn: pip install 'rewardloop[trainer]' brings matplotlib")

    def __call__(self, done: StepDone) -> None:
        """Add a step. Rows of this and later steps, which a run left that was cut off, are removed."""
        figures = dict(done.figures)
        if done.seconds and done.sampled_tokens:
            figures[TOKENS_PER_S] = done.sampled_tokens / done.seconds
        row = StepRow(done.step, done.steps, time.time(), figures)
        if not self._has_begun:
            self._begin(row)
        self._rows.append(row)
        with (self._directory / STEPS).open("a") as file:
            file.write(row.to_json())
        self._to_events(row)
        self._show(row)
        is_last = done.step == done.steps
        if is_last or done.step % self._draw_every == 0:
            self._draw()
        if is_last:
            self.close()

    def add(self, figures: Mapping[str, float]) -> None:
        """Add figures that were measured after the last step, such as the gate's; without any step, do nothing."""
        self._rows = read_steps(self._directory)
        if not self._rows:
            return
        last = self._rows.pop()
        self._rows.append(StepRow(last.step, last.steps, last.time, {**last.figures, **figures}))
        self._write_all()
        self._draw()
        self.close()

    def note(self, text: str) -> None:
        """Keep a line about the whole run, in place of an earlier one."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / NOTES).write_text(f"{text}\n")

    def close(self) -> None:
        """Close the progress bar and the event file. The last step of a run closes them too."""
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()
        self._bar = self._events = None

    def _begin(self, first: StepRow) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._rows = [row for row in read_steps(self._directory) if row.step < first.step]
        self._has_begun = True
        self._write_all()
        if self._console is not None and self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("training"), *columns, console=self._console, transient=True)
            self._bar.add_task("training", total=first.steps, completed=first.step - 1)
            self._bar.start()

    def _write_all(self) -> None:
        """Write both files anew from the rows."""
        partial = self._directory / f".{STEPS}"
        partial.write_text("".join(row.to_json() for row in self._rows))
        partial.replace(self._directory / STEPS)
        if self._events is not None:
            self._events.close()
        for old in self._directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._events = _event_writer(self._directory)
        for row in self._rows:
            self._to_events(row)

    def _to_events(self, row: StepRow) -> None:
        if self._events is None:
            return
        for name, value in row.figures.items():
            self._events.add_scalar(name, value, row.step, row.time)
        self._events.flush()

    def _show(self, row: StepRow) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=row.step)
        if self._console is not None:
            self._console.print(row.line(), highlight=False, markup=False, soft_wrap=True)

    def _draw(self) -> None:
        if not self._can_draw:
            return
        from rewardloop_trainer.learning.run_figure import draw  # matplotlib takes a second to load

        partial = self._directory / f".{FIGURE}"
        draw(self._rows, partial)
        partial.replace(self._directory / FIGURE)


def _event_writer(directory: Path) -> Any:
    if find_spec("tensorboardX") is None:
        log.warning("no TensorBoard events will be written: pip install 'rewardloop[trainer]' brings tensorboardX")
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory))
