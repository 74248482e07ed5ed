"""The command `feedback import`: looks at files, and records their signals.

The same row always has the same event_id, so that the server counts a row once that is sent twice after a crash.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rewardloop.v1 import feedback_pb2
from rewardloop_cli.connect import open_client
from rewardloop_cli.feedback.sending import BATCH_EVENTS, Delivery, GaveUp, one_line, send_file
from rewardloop_client import RewardloopClient, RewardloopError
from rewardloop_data.judgements import Labels, event_of
from rewardloop_data.recognise import Reading
from rewardloop_data.rows import Json
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.side_files import Progress, SideFiles, writable_folder
from rewardloop_data.source_file import SourceFile, UnreadableFile, opened
from rewardloop_data.survey import Copies, survey

_SHOWN_REJECTIONS = 10


@dataclass(frozen=True, slots=True)
class SignalPlan:
    """How the rows of a file become signals, and the labels that every signal gets."""

    reading: Reading
    labels: Labels
    most_items: int = BATCH_EVENTS

    @property
    def reads_settled_rows(self) -> bool:
        """Whether equal judgements are told apart by their number, which the rows before them decide."""
        return self.reading.choices.counts_copies

    def reader(self) -> Callable[[Json], list[feedback_pb2.FeedbackEvent]]:
        """Return the function that turns a row into its signals."""
        copies = Copies(self.labels.aspect) if self.reading.choices.counts_copies else None

        def read(row: Json) -> list[feedback_pb2.FeedbackEvent]:
            judgements = self.reading.judgements(row)
            if copies is not None:
                judgements = copies.numbered(judgements)
            return [event_of(each, self.labels) for each in judgements]

        return read


def import_id_of(source: SourceFile, choices: Choices, given: Sequence[Any]) -> str:
    """Return the id of an import. The same file has the same id if it is read with the same choices and settings.

    Args:
        source: The file.
        choices: How its rows are read.
        given: The settings of the command that change what the rows become.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    chosen: list[Any] = [choices.format, sorted(choices.columns.items()), sorted(choices.ignored), choices.indices]
    chosen += [choices.rankings, choices.scale, choices.is_verbatim, choices.counts_copies]
    chosen += ["csv-safe"] if source.is_guarded else []
    return hashlib.sha256(json.dumps([source.sha256(), chosen, list(given)]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The settings of one run of the command.

    Attributes:
        server: Address of the server.
        labels: What every signal gets.
        choices: What is settled about the files.
        patience_s: Seconds to wait while the server or Redis is away.
        side_dir: Folder for the progress and the rejected rows; None for the file's own.
        restart: Whether the progress of an earlier run is ignored.
        dry_run: Whether nothing is sent.
        csv_safe: Whether the cells of tables were guarded from spreadsheets.
    """

    server: str
    labels: Labels = field(default_factory=Labels)
    choices: Choices = field(default_factory=Choices)
    patience_s: float = 120.0
    side_dir: Path | None = None
    restart: bool = False
    dry_run: bool = False
    csv_safe: bool = False


def run(files: Sequence[str], options: ImportOptions) -> int:
    """Import files one after the other. Returns 0, or 1 if rows were rejected, or 2 if a file or the server failed."""
    code = 0
    with ExitStack() as stack:
        client = None if options.dry_run else stack.enter_context(open_client(options.server, timeout_s=30.0))
        for location in files:
            try:
                with opened(location) as source:
                    outcome = _import_one(replace(source, is_guarded=options.csv_safe), client, options)
            except UnreadableFile as error:
                print(f"rewardloop: {error}", file=sys.stderr)
                outcome = 2
            if outcome is None:
                return 2
            code = max(code, outcome)
    return code


def _import_one(source: SourceFile, client: RewardloopClient | None, options: ImportOptions) -> int | None:
    """Import a file, or say how it would be. Returns its exit status, or None if the server failed.

    Raises:
        UnreadableFile: It cannot be read, or it is not clear what its rows say. Nothing has been sent.
    """
    from rewardloop_cli.feedback.report import Report
    from rewardloop_cli.feedback.summary import summary_of

    started = time.monotonic()
    found = survey(source.shown, source.lines(), options.choices, options.labels.aspect)
    labels = options.labels
    given = [labels.source, sorted((labels.tags or {}).items()), labels.aspect]
    import_id = import_id_of(source, options.choices, given)
    summary = summary_of(source.name, found, import_id)
    if client is None:
        print("\n".join(summary), flush=True)
        if found.broken is not None:
            raise found.broken
        return int(found.refused > 0)
    plan = SignalPlan(found.reading, replace(options.labels, import_id=import_id))
    with Report(source, shown=_SHOWN_REJECTIONS) as report:
        for line in summary:
            report.say(line)
        folder = options.side_dir or (Path.cwd() if source.named else writable_folder(source.path.parent))
        if folder is None:
            folder = Path.cwd()
            report.say(f"{source.path.parent} is not writable: side files go to {folder}")
        try:
            side_files = SideFiles(source, folder)
            fresh = Progress(source.head_sha256, source.size, options.server, import_id)
            progress = side_files.begin(fresh, restart=options.restart)
            if progress.lines_done:
                report.say(f"going on after line {progress.lines_done} (--restart starts over)")
            delivery = Delivery(client.record_batch, options.patience_s, report.say)
            progress = send_file(source, delivery, side_files, plan, progress, report.settled)
        except UnreadableFile as error:
            report.fail(str(error))
            return 2
        except (GaveUp, RewardloopError, OSError) as error:
            report.fail(f"{source.shown}: {one_line(error)}; the same command goes on where this one stopped")
            return None
        report.summary(progress, time.monotonic() - started, side_files.rejected_path)
        return int(progress.rejected > 0)
