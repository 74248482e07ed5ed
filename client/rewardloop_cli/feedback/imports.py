"""The command `feedback import`: reads rows, sends their signals in batches, and keeps its progress.

Batches are sent in parallel and settled in order, so that the progress "done up to line N" is always true. The same row
always has the same event_id, so that the server counts a row once that is sent twice after a crash.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rewardloop.v1 import feedback_pb2
from rewardloop_cli.connect import open_client
from rewardloop_cli.feedback.report import Batch
from rewardloop_client import (
    EventIdConflict,
    InvalidRequest,
    MessageTooLarge,
    RecordResult,
    RewardloopClient,
    RewardloopError,
)
from rewardloop_data.judgements import Labels, event_of
from rewardloop_data.recognise import Reading
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.side_files import Progress, Rejection, SideFiles, writable_folder
from rewardloop_data.source_file import Line, SourceFile, UnreadableFile, opened
from rewardloop_data.survey import Copies, survey

BATCH_EVENTS = 500
BATCH_BYTES = 2 * 1024 * 1024  # below the 4 MiB that a gRPC server takes by default
PARALLEL_BATCHES = 4
_SHOWN_REJECTIONS = 10
_PATIENCE_PAUSE_S = 1.0


class GaveUp(Exception):
    """Raised if the server stays away longer than the caller wants to wait."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of a file are read, and what every signal of them gets."""

    reading: Reading
    labels: Labels


def import_id_of(source: SourceFile, choices: Choices, labels: Labels) -> str:
    """Return the id of an import: the same file, read in the same way with the same labels, has the same one.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    chosen: list[Any] = [choices.format, sorted(choices.columns.items()), sorted(choices.ignored), choices.indices]
    chosen += [choices.rankings, choices.scale, choices.is_verbatim, choices.counts_copies]
    given = [labels.source, sorted((labels.tags or {}).items()), labels.aspect]
    return hashlib.sha256(json.dumps([source.sha256(), chosen, given]).encode()).hexdigest()[:16]


def batches(lines: Iterator[Line], plan: Plan, start: int = 0) -> Iterator[Batch]:
    """Yield the rows after line ``start`` in batches of up to BATCH_EVENTS signals and BATCH_BYTES.

    A row's signals stay together.
    """
    copies = Copies(plan.labels.aspect) if plan.reading.choices.counts_copies else None
    batch: Batch | None = None
    broken: UnreadableFile | None = None
    while True:
        try:
            line = next(lines)
        except StopIteration:
            break
        except UnreadableFile as error:  # the rows before the damage still count
            broken = error
            break
        if line.number <= start and copies is None:
            continue
        try:
            judgements = plan.reading.judgements(line.value())
            if copies is not None:
                judgements = copies.numbered(judgements)
            events = [event_of(each, plan.labels) for each in judgements] if line.number > start else []
            rejections = []
        except RowError as error:
            events, rejections = [], [Rejection(line.number, str(error), line.kept())]
        if line.number <= start:  # it was settled before, and counts the copies alone
            continue
        size = sum(event.ByteSize() for event in events)
        if batch is not None and (
            len(batch.events) + len(events) > BATCH_EVENTS
            or batch.bytes + size > BATCH_BYTES
            or len(batch.rejections) >= BATCH_EVENTS
        ):
            yield batch
            batch = None
        batch = batch or Batch(line)
        batch.last = line
        batch.rows += 1
        batch.bytes += size
        batch.events += events
        batch.lines += [line] * len(events)
        batch.rejections += rejections
    if batch is not None:
        yield batch
    if broken is not None:
        raise broken


class Delivery:
    """Records batches. While the server or Redis is away, it waits up to ``patience_s`` seconds."""

    def __init__(self, client: RewardloopClient, patience_s: float, say: Callable[[str], None]) -> None:
        self._client = client
        self._patience_s = patience_s
        self._say = say
        self._waiting = False
        self._stopped = False

    def stop(self) -> None:
        """Make waiting deliveries give up."""
        self._stopped = True

    def record(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[RecordResult | RewardloopError]:
        """Record events, and return one outcome for each. An error among them is final.

        Raises:
            GaveUp: The server stayed away too long.
            RewardloopError: The call failed for a reason that waiting does not mend.
        """
        outcomes: list[RecordResult | RewardloopError | None] = [None] * len(events)
        pending = list(range(len(events)))
        since = time.monotonic()
        while pending:
            try:
                answers = self._send([events[i] for i in pending])
            except RewardloopError as error:
                if not _worth_waiting(error):
                    raise
                self._wait(error, since)
                continue
            for i, answer in zip(pending, answers, strict=True):
                outcomes[i] = answer
            left = [i for i in pending if _worth_waiting(outcomes[i])]
            if len(left) < len(pending):
                since, self._waiting = time.monotonic(), False
            if pending := left:
                self._wait(outcomes[pending[0]], since)
        return [outcome for outcome in outcomes if outcome is not None]

    def _send(self, events: list[feedback_pb2.FeedbackEvent]) -> list[RecordResult | RewardloopError]:
        """Send events in one call. If they exceed our bound or the server's, split them into halves and send each."""
        if len(events) <= BATCH_EVENTS:
            try:
                return self._client.record_batch(events)
            except (MessageTooLarge, InvalidRequest) as error:
                if len(events) == 1:
                    return [error]
        half = len(events) // 2
        return self._send(events[:half]) + self._send(events[half:])

    def _wait(self, error: object, since: float) -> None:
        waited = time.monotonic() - since
        if self._stopped or waited >= self._patience_s:
            raise GaveUp(f"gave up after {waited:.0f} s: {_one_line(error)}")
        if not self._waiting:
            self._waiting = True
            self._say(f"waiting up to {self._patience_s:.0f} s: {_one_line(error)}")
        time.sleep(_PATIENCE_PAUSE_S)


def _worth_waiting(outcome: object) -> bool:
    return isinstance(outcome, RewardloopError) and (
        outcome.may_retry or outcome.code.name == "DEADLINE_EXCEEDED"  # the server records an event_id once
    )


def _one_line(error: object) -> str:
    reason = getattr(error, "reason", "") or type(error).__name__
    return f"{reason}: {' '.join(str(error).split())[:200]}"


def settle(
    progress: Progress, batch: Batch, outcomes: Sequence[RecordResult | RewardloopError]
) -> tuple[Progress, list[Rejection]]:
    """Return the progress after a recorded batch, and its rejected rows in order.

    A row is rejected if any of its signals is.
    """
    rejected = {r.line: r for r in batch.rejections}
    for line, outcome in zip(batch.lines, outcomes, strict=True):
        if isinstance(outcome, RewardloopError) and not isinstance(outcome, EventIdConflict):
            rejected.setdefault(line.number, Rejection(line.number, _one_line(outcome), line.kept()))
    results = [o for o in outcomes if isinstance(o, RecordResult)]
    # The same judgement has been recorded with other labels: it counts once.
    others = sum(isinstance(outcome, EventIdConflict) for outcome in outcomes)
    known = sum(r.duplicate for r in results)
    progress = replace(
        progress,
        lines_done=batch.last.number,
        rows=progress.rows + batch.rows,
        recorded=progress.recorded + len(results) - known,
        duplicates=progress.duplicates + known + others,
        relabelled=progress.relabelled + others,
        rejected=progress.rejected + len(rejected),
    )
    return progress, [rejected[number] for number in sorted(rejected)]


def import_file(
    source: SourceFile,
    delivery: Delivery,
    side_files: SideFiles,
    plan: Plan,
    progress: Progress,
    on_settled: Callable[[Batch, Progress, Sequence[Rejection]], None],
) -> Progress:
    """Import the rest of one file, and call ``on_settled`` after each batch that is settled and written down.

    The progress up to an exception is kept.

    Raises:
        UnreadableFile: The file is damaged or has no rows.
        GaveUp: The server stayed away too long.
        RewardloopError: A call failed for a reason that waiting does not mend.
    """
    in_flight: deque[tuple[Batch, Future[list[RecordResult | RewardloopError]]]] = deque()
    start = progress.lines_done

    def settle_oldest() -> None:
        nonlocal progress
        batch, outcome = in_flight[0]
        progress, rejections = settle(progress, batch, outcome.result())
        in_flight.popleft()
        progress = side_files.advance(progress, rejections)
        on_settled(batch, progress, rejections)

    broken: UnreadableFile | None = None
    with ThreadPoolExecutor(PARALLEL_BATCHES) as pool:
        try:
            try:
                for batch in batches(source.lines(), plan, start):
                    in_flight.append((batch, pool.submit(delivery.record, batch.events)))
                    if len(in_flight) >= PARALLEL_BATCHES:
                        settle_oldest()
            except UnreadableFile as error:
                broken = error
            while in_flight:
                settle_oldest()
        finally:
            delivery.stop()
            for _, outcome in in_flight:
                outcome.cancel()
    if broken is not None:
        raise broken
    if progress.rows == 0:
        raise UnreadableFile(f"{source.shown}: has no rows")
    side_files.finish()
    return progress


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
    """

    server: str
    labels: Labels = field(default_factory=Labels)
    choices: Choices = field(default_factory=Choices)
    patience_s: float = 120.0
    side_dir: Path | None = None
    restart: bool = False
    dry_run: bool = False


def run(files: Sequence[str], options: ImportOptions) -> int:
    """Import files one after the other. Returns 0, or 1 if rows were rejected, or 2 if a file or the server failed."""
    code = 0
    with ExitStack() as stack:
        client = None if options.dry_run else stack.enter_context(open_client(options.server, timeout_s=30.0))
        for location in files:
            try:
                with opened(location) as source:
                    outcome = _import_one(source, client, options)
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
    import_id = import_id_of(source, options.choices, options.labels)
    summary = summary_of(source.name, found, import_id)
    if client is None:
        print("\n".join(summary), flush=True)
        if found.broken is not None:
            raise found.broken
        return int(found.refused > 0)
    plan = Plan(found.reading, replace(options.labels, import_id=import_id))
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
            delivery = Delivery(client, options.patience_s, report.say)
            progress = import_file(source, delivery, side_files, plan, progress, report.settled)
        except UnreadableFile as error:
            report.fail(str(error))
            return 2
        except (GaveUp, RewardloopError, OSError) as error:
            report.fail(f"{source.shown}: {_one_line(error)}; the same command goes on where this one stopped")
            return None
        report.summary(progress, time.monotonic() - started, side_files.rejected_path)
        return int(progress.rejected > 0)
