"""Sends the rows of a file in batches, and keeps the progress. A plan says what the rows become, such as signals.

Batches are sent in parallel and settled in order, so that the progress "done up to line N" is always true. After a
crash an item may be sent twice, so that the server must count it once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message

from rewardloop_client import EventIdConflict, InvalidRequest, MessageTooLarge, RewardloopError
from rewardloop_data.rows import Json, RowError
from rewardloop_data.side_files import Progress, Rejection, SideFiles
from rewardloop_data.source_file import Line, SourceFile, UnreadableFile

BATCH_EVENTS = 500
BATCH_BYTES = 2 * 1024 * 1024  # below the 4 MiB that a gRPC server takes by default
PARALLEL_BATCHES = 4
_PATIENCE_PAUSE_S = 1.0


class Recorded(Protocol):
    """The outcome of an item that the server has."""

    @property
    def duplicate(self) -> bool:
        """Whether the server had it before."""


M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Recorded)


class GaveUp(Exception):
    """Raised if the server stays away longer than the caller wants to wait."""


class Plan(Protocol[M]):
    """How the rows of a file become items to send."""

    @property
    def most_items(self) -> int:
        """Most items of a batch."""

    @property
    def reads_settled_rows(self) -> bool:
        """Whether a row's items depend on the rows before it. If so, a run that goes on reads those again."""

    def reader(self) -> Callable[[Json], list[M]]:
        """Return a function that is called with each row in turn, and returns its items. It raises RowError."""


@dataclass(slots=True)
class Batch(Generic[M]):
    """Rows that are sent together: their items, and the rows that were rejected. ``last`` is the last line."""

    last: Line
    rows: int = 0
    bytes: int = 0
    items: list[M] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)  # the line of each item
    rejections: list[Rejection] = field(default_factory=list)


def batches(lines: Iterator[Line], plan: Plan[M], start: int = 0) -> Iterator[Batch[M]]:
    """Yield the rows after line ``start`` in batches of up to the plan's ``most_items`` items and BATCH_BYTES.

    A row's items stay together.
    """
    read = plan.reader()
    batch: Batch[M] | None = None
    broken: UnreadableFile | None = None
    while True:
        try:
            line = next(lines)
        except StopIteration:
            break
        except UnreadableFile as error:  # the rows before the damage still count
            broken = error
            break
        if line.number <= start and not plan.reads_settled_rows:
            continue
        items: list[M] = []
        rejections = []
        try:
            items = read(line.value())
        except RowError as error:
            rejections = [Rejection(line.number, str(error), line.kept())]
        if line.number <= start:  # it was settled before, and tells later rows apart alone
            continue
        size = sum(item.ByteSize() for item in items)
        if batch is not None and (
            len(batch.items) + len(items) > plan.most_items
            or batch.bytes + size > BATCH_BYTES
            or len(batch.rejections) >= BATCH_EVENTS
        ):
            yield batch
            batch = None
        batch = batch or Batch(line)
        batch.last = line
        batch.rows += 1
        batch.bytes += size
        batch.items += items
        batch.lines += [line] * len(items)
        batch.rejections += rejections
    if batch is not None:
        yield batch
    if broken is not None:
        raise broken


class Delivery(Generic[M, R]):
    """Records batches. While the server or Redis is away, it waits up to ``patience_s`` seconds.

    Args:
        send: Sends items, and returns one outcome for each.
        patience_s: Seconds to wait.
        say: Called with a message when a wait begins.
    """

    def __init__(
        self, send: Callable[[list[M]], list[R | RewardloopError]], patience_s: float, say: Callable[[str], None]
    ) -> None:
        self._send_all = send
        self._patience_s = patience_s
        self._say = say
        self._waiting = False
        self._stopped = False

    def stop(self) -> None:
        """Stop waiting for the server. A delivery that waits raises GaveUp."""
        self._stopped = True

    def record(self, items: Sequence[M]) -> list[R | RewardloopError]:
        """Record items, and return one outcome for each. An error among them is final.

        Raises:
            GaveUp: The server stayed away too long.
            RewardloopError: The call failed for a reason that waiting does not mend.
        """
        outcomes: list[R | RewardloopError | None] = [None] * len(items)
        pending = list(range(len(items)))
        since = time.monotonic()
        while pending:
            try:
                answers = self._send([items[i] for i in pending])
            except RewardloopError as error:
                if not worth_waiting(error):
                    raise
                self._wait(error, since)
                continue
            for i, answer in zip(pending, answers, strict=True):
                outcomes[i] = answer
            left = [i for i in pending if worth_waiting(outcomes[i])]
            if len(left) < len(pending):
                since, self._waiting = time.monotonic(), False
            if pending := left:
                self._wait(outcomes[pending[0]], since)
        return [outcome for outcome in outcomes if outcome is not None]

    def _send(self, items: list[M]) -> list[R | RewardloopError]:
        """Send items in one call. If they exceed our bound or the server's, split them into halves and send each."""
        if len(items) <= BATCH_EVENTS:
            try:
                return self._send_all(items)
            except (MessageTooLarge, InvalidRequest) as error:
                if len(items) == 1:
                    return [error]
        half = len(items) // 2
        return self._send(items[:half]) + self._send(items[half:])

    def _wait(self, error: object, since: float) -> None:
        waited = time.monotonic() - since
        if self._stopped or waited >= self._patience_s:
            raise GaveUp(f"gave up after {waited:.0f} s: {one_line(error)}")
        if not self._waiting:
            self._waiting = True
            self._say(f"waiting up to {self._patience_s:.0f} s: {one_line(error)}")
        time.sleep(_PATIENCE_PAUSE_S)


def worth_waiting(outcome: object) -> bool:
    """Return whether an outcome is an error that a later try may not meet."""
    return isinstance(outcome, RewardloopError) and (
        outcome.may_retry or outcome.code.name == "DEADLINE_EXCEEDED"  # the server records an event_id once
    )


def one_line(error: object) -> str:
    """Return the error's reason and text in one line."""
    reason = getattr(error, "reason", "") or type(error).__name__
    return f"{reason}: {' '.join(str(error).split())[:200]}"


def settle(
    progress: Progress, batch: Batch[M], outcomes: Sequence[R | RewardloopError]
) -> tuple[Progress, list[Rejection]]:
    """Return the progress after a recorded batch, and its rejected rows in order.

    A row is rejected if any of its items is.
    """
    rejected = {r.line: r for r in batch.rejections}
    for line, outcome in zip(batch.lines, outcomes, strict=True):
        if isinstance(outcome, RewardloopError) and not isinstance(outcome, EventIdConflict):
            rejected.setdefault(line.number, Rejection(line.number, one_line(outcome), line.kept()))
    results = [o for o in outcomes if not isinstance(o, RewardloopError)]
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


def send_file(
    source: SourceFile,
    delivery: Delivery[M, R],
    side_files: SideFiles,
    plan: Plan[M],
    progress: Progress,
    on_settled: Callable[[Batch[M], Progress, Sequence[Rejection]], None],
) -> Progress:
    """Send the rest of one file, and call ``on_settled`` after each batch that is settled and written down.

    The progress up to an exception is kept.

    Raises:
        UnreadableFile: The file is damaged or has no rows.
        GaveUp: The server stayed away too long.
        RewardloopError: A call failed for a reason that waiting does not mend.
    """
    in_flight: deque[tuple[Batch[M], Future[list[R | RewardloopError]]]] = deque()
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
                    in_flight.append((batch, pool.submit(delivery.record, batch.items)))
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
