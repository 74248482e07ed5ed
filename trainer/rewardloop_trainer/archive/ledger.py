"""The ledger: every archived signal, in immutable Parquet segments.

A segment ``<first_stream_id>_<last_stream_id>.parquet`` is whole or absent. Compaction writes one segment that names
the segments it replaces, and only then deletes those. A reader in between drops the events that it meets twice. A
compaction that was cut short is finished the next time the ledger is opened for writing.

Rows, first and last stream id of a segment are known without reading it: from its name, and from the file of
`segment_index` or, for the segments that are not in it, from their footers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import key_of, signal_key
from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.ledger_columns import Recorded, from_table, to_table
from rewardloop_trainer.archive.segment_files import CorruptSegment as CorruptSegment
from rewardloop_trainer.archive.segment_files import Segment as Segment
from rewardloop_trainer.archive.segment_files import SegmentFiles
from rewardloop_trainer.archive.segment_files import order as order
from rewardloop_trainer.archive.small_files import SmallFiles

T = TypeVar("T")

_KEPT_COUNTS = 64
_PART_BYTES = 64 * 2**20
# A compaction writes no larger file, because it is in memory until it is whole.
_COMPACTED_BYTES = 128 * 2**20


class NoLedger(ValueError):
    """Raised when signals are to be read where there is no ledger, or one without any signal."""


class Ledger:
    """Appends to and reads the ledger at ``url``, a directory or any fsspec URL.

    One process writes at a time, which the trainer's lock and ``fence`` ensure. Others may read with
    ``writable=False`` meanwhile. Threads of one process may share an instance.
    """

    def __init__(self, url: str | Path, *, writable: bool = True, fence: Fence | None = None) -> None:
        self._fence = fence
        self._files = SegmentFiles(url, fence)
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._in_order: tuple[Segment, ...] | None = None
        self._counts: dict[tuple[str, tuple[int, int]], int] = {}  # rows of a segment after a stream id
        if writable:
            self._files.make()
        self.refresh()
        if writable:
            self._files.write_index(self._segments.keys())

    def refresh(self) -> None:
        """List the segments again, to see what another process wrote."""
        with self._lock:
            self._segments = self._listed()
            self._in_order = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in stream order."""
        with self._lock:
            if self._in_order is None:
                by_ids = sorted(self._segments.values(), key=lambda s: (order(s.first), order(s.last)))
                self._in_order = tuple(by_ids)
            return self._in_order

    @property
    def row_count(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def last_stream_id(self) -> str | None:
        """The highest stream id in the ledger; None if the ledger is empty."""
        return max((segment.last for segment in self.segments), key=order, default=None)

    @property
    def leader_epoch(self) -> int:
        """The epoch in which this process leads; 0 for a ledger without a fence."""
        return 0 if self._fence is None else self._fence.epoch

    def held(self) -> AbstractContextManager[None]:
        """Return a block that may make something visible. Entering it raises `Fenced` if another trainer leads."""
        return self._files.held()

    def append(self, rows: Sequence[Recorded]) -> Segment | None:
        """Write rows as one segment, which is on disk when this returns. Without rows nothing is written.

        After an exception none of the rows is in the ledger.

        Raises:
            Fenced: If another trainer leads.
            OSError: If the disk is full or fails.
        """
        if not rows:
            return None
        ids = sorted((row.stream_id for row in rows), key=order)
        segment = Segment(self._files.name(ids[0], ids[-1]), ids[0], ids[-1], len(rows))
        self._files.write(segment.name, [to_table(rows)])
        with self._lock:
            self._segments[segment.name] = segment
            self._in_order = None
        return segment

    def scan(self, after_stream_id: str | None = None, until_stream_id: str | None = None) -> Iterator[Recorded]:
        """Yield the rows with after < stream id <= until, segment by segment, each signal once.

        Raises:
            CorruptSegment: If a segment cannot be read.
        """
        low = order(after_stream_id) if after_stream_id else (-1, 0)
        high = order(until_stream_id) if until_stream_id else None
        seen: set[str] = set()
        for table in self._tables(low, high):
            for row in from_table(table):
                key = signal_key(row.event)
                if key not in seen:
                    seen.add(key)
                    yield row

    def parts(
        self, after_stream_id: str | None = None, until_stream_id: str | None = None, *, most_rows: int
    ) -> Iterator[list[Recorded]]:
        """Yield the rows that `scan` yields, in lists of at most so many rows and of a bounded number of bytes."""
        part: list[Recorded] = []
        size = 0
        for row in self.scan(after_stream_id, until_stream_id):
            part.append(row)
            size += row.event.ByteSize()
            if len(part) == most_rows or size >= _PART_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part

    def event_ids(self, newest: int | None = None) -> list[str]:
        """Return the event id of every row in stream order, repeated ones included.

        With ``newest``, only as many of the newest segments are read as are needed for that many rows.
        """
        return self._though_compacted(
            lambda: [event_id for table in self._newest(newest, ["event_id"]) for event_id in _texts(table, "event_id")]
        )

    def signal_keys(self, newest: int | None = None) -> list[str]:
        """Return the key of every row's signal, as `event_ids` does."""
        return self._though_compacted(
            lambda: [key for table in self._newest(newest, ["event_id", "caller"]) for key in _keys(table)]
        )

    def _newest(self, rows: int | None, columns: list[str]) -> Iterator[pa.Table]:
        """Yield these columns of the newest segments that have so many rows, in stream order."""
        chosen: list[Segment] = []
        found = 0
        for segment in reversed(self.segments):
            if rows is not None and found >= rows:
                break
            chosen.append(segment)
            found += segment.rows
        for segment in reversed(chosen):
            yield self._files.read(segment.name, columns)

    def keys_at(self, stream_ids: Iterable[str]) -> dict[str, str]:
        """Return the keys of the signals at these places of the ledger, by stream id."""
        wanted = set(stream_ids)
        return self._though_compacted(lambda: self._keys_at(wanted))

    def _keys_at(self, wanted: set[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for segment in self.segments:
            first, last = order(segment.first), order(segment.last)
            if any(first <= order(i) <= last for i in wanted - found.keys()):
                table = self._files.read(segment.name, ["stream_id", "event_id", "caller"])
                rows = zip(_texts(table, "stream_id"), _keys(table), strict=True)
                found |= {stream_id: key for stream_id, key in rows if stream_id in wanted}
        return found

    def rows_after(self, stream_id: str | None) -> int:
        """Return how many rows have a higher stream id than this one; all rows if it is None.

        At most the stream ids of the segments that this one falls into are read, and each of these is read once.
        """
        if stream_id is None:
            return self.row_count
        return self._though_compacted(lambda: self._rows_after(order(stream_id)))

    def rows_through(self, stream_id: str) -> int:
        """Return how many rows have at most this stream id; none if it is ""."""
        return self.row_count - self.rows_after(stream_id) if stream_id else 0

    def _rows_after(self, low: tuple[int, int]) -> int:
        rows = 0
        for segment in self.segments:
            if order(segment.first) > low:
                rows += segment.rows
            elif order(segment.last) > low:
                rows += self._rows_of(segment, low)
        return rows

    def _rows_of(self, segment: Segment, low: tuple[int, int]) -> int:
        key = (segment.name, low)
        if key not in self._counts:
            if len(self._counts) >= _KEPT_COUNTS:
                self._counts.clear()
            self._counts[key] = sum(order(i) > low for i in self._files.column(segment, "stream_id"))
        return self._counts[key]

    def newest_from(self, rows: int, until_stream_id: str) -> str:
        """Return the last stream id of a segment after which at least ``rows`` rows come up to ``until_stream_id``.

        It is "" if fewer rows come before ``until_stream_id``. No segment is read but the one that this id falls into.
        """
        wanted = rows + self.rows_after(until_stream_id)
        last = order(until_stream_id)
        for segment in reversed(self.segments):
            if wanted <= 0 and order(segment.last) < last:
                return segment.last
            wanted -= segment.rows
        return ""

    def arrivals(
        self, after_stream_id: str | None = None, until_stream_id: str | None = None, *, aspect: str = REWARD
    ) -> list[float]:
        """Return the arrival times, in Unix seconds, of the aspect's rows with after < stream id <= until."""
        low = order(after_stream_id) if after_stream_id else (-1, 0)
        high = order(until_stream_id) if until_stream_id else None
        found: list[float] = []
        for table in self._tables(low, high, ["stream_id", "arrival_time", "aspect"]):
            times = table.column("arrival_time").cast(pa.int64()).to_pylist()
            aspects = table.column("aspect").to_pylist()
            found += [t / 1e6 for t, own in zip(times, aspects, strict=True) if (own or REWARD) == aspect]
        return found

    @property
    def retractions(self) -> int:
        """How often an import was taken out of the ledger. What was read before may hold signals that are gone."""
        return self._files.retractions()

    def imported(self, import_id: str, caller: str = "", since: str = "") -> list[str]:
        """Return the event ids of the signals of a caller's import, in stream order.

        ``since``: the place before which none is, so that no segment before it is read; "" if that is not known.
        """
        return self._though_compacted(
            lambda: [each for segment in self._since(since) for each in self._imported(segment, import_id, caller)[1]]
        )

    def _since(self, place: str) -> list[Segment]:
        return [each for each in self.segments if not place or order(each.last) >= order(place)]

    def retract(self, import_id: str, caller: str = "", since: str = "") -> int:
        """Take what `imported` finds of a caller's import out of the ledger. Returns how many signals they were.

        A process that is killed meanwhile leaves some of them, and taking them out again takes out the rest.

        Raises:
            Fenced: If another trainer leads.
            OSError: If the disk is full or fails.
        """
        gone = 0
        for segment in self._since(since):
            wanted, ids = self._imported(segment, import_id, caller)
            if not ids:
                continue
            if not gone:
                self._files.note_retraction()  # before and after, for a reader in between
            gone += len(ids)
            self._replace(segment, wanted)
        if gone:
            self._files.note_retraction()
        return gone

    @property
    def small_files(self) -> SmallFiles:
        """The small files beside the segments."""
        return self._files.small

    @property
    def erasures(self) -> list[str]:
        """The ids of the erasures that were carried out on this ledger, in their order."""
        return self._files.erasures()

    def note_erasures(self, erasure_ids: Iterable[str]) -> None:
        """Note that erasures were carried out. Raises `Fenced` and OSError."""
        self._files.note_erasures(erasure_ids)

    def each_segment(self, columns: list[str]) -> Iterator[tuple[Segment, pa.Table]]:
        """Yield some columns of every segment, in stream order. Only for the process that writes."""
        for segment in self.segments:
            yield segment, self._files.read(segment.name, columns)

    def whole_segment(self, segment: Segment) -> Iterator[Recorded]:
        """Yield the signals of a segment. Only for the process that writes."""
        for table in self._files.groups(segment.name):
            yield from from_table(table)

    def remove(self, segment: Segment, stays: Sequence[bool]) -> None:
        """Take the rows out of a segment that do not stay. No copy of them is left in the directory.

        Raises:
            Fenced: If another trainer leads.
            OSError: If the disk is full or fails.
        """
        self._replace(segment, stays)

    def _imported(self, segment: Segment, import_id: str, caller: str) -> tuple[list[bool], list[str]]:
        """Return which rows of a segment stay, and the event ids of those that do not."""
        table = self._files.read(segment.name, ["import_id", "caller", "event_id"])
        is_gone = [
            its == import_id and (who or "") == caller
            for its, who in zip(table.column("import_id").to_pylist(), table.column("caller").to_pylist(), strict=True)
        ]
        ids = [each for each, gone in zip(_texts(table, "event_id"), is_gone, strict=True) if gone]
        return [not gone for gone in is_gone], ids

    def _replace(self, segment: Segment, stays: Sequence[bool]) -> None:
        """Replace a segment by one with those of its rows that stay."""
        table = self._files.read(segment.name).filter(pa.array(stays))
        smaller: Segment | None = None
        if table.num_rows:
            ids = sorted(_texts(table, "stream_id"), key=order)
            name = self._files.name(ids[0], ids[-1])
            replaced = [segment.name] if segment.name != name else []
            smaller = Segment(name, ids[0], ids[-1], self._files.write(name, [table], replaced))
        with self._lock:
            del self._segments[segment.name]
            if smaller is not None:
                self._segments[smaller.name] = smaller
            self._in_order = None
            self._counts.clear()
        if smaller is None or smaller.name != segment.name:
            with self._files.held():
                self._files.delete([segment.name])

    def compact(self, *, segments: int = 32, small_rows: int = 5_000, target_rows: int = 200_000) -> Segment | None:
        """Merge neighbouring small segments into one if there are at least ``segments`` of them.

        Returns the merged segment, or None if nothing was merged.
        """
        self._files.write_index([segment.name for segment in self.segments])
        merged: list[Segment] = []
        for segment in self.segments:
            has_room = sum(s.rows for s in merged) + segment.rows <= target_rows
            if segment.rows < small_rows and has_room and self._bytes([*merged, segment]) <= _COMPACTED_BYTES:
                merged.append(segment)
            elif len(merged) >= segments:
                break
            else:
                merged = []
        if len(merged) < segments:
            return None
        first = min((s.first for s in merged), key=order)
        last = max((s.last for s in merged), key=order)
        name = self._files.name(first, last)
        replaced = [s.name for s in merged if s.name != name]
        tables = (table for s in merged for table in self._files.groups(s.name))
        whole = Segment(name, first, last, self._files.write(name, _distinct(tables), replaced))
        with self._lock:
            self._segments[whole.name] = whole
            for name in replaced:
                del self._segments[name]
            self._in_order = None
            self._counts.clear()  # the merged segment may have the name of one that it replaces
        self._files.delete(replaced)
        return whole

    def _bytes(self, segments: Iterable[Segment]) -> int:
        return sum(self._files.size(segment.name) for segment in segments)

    def _tables(
        self, low: tuple[int, int], high: tuple[int, int] | None, columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows with low < stream id <= high, a row group at a time."""
        done: set[str] = set()
        while True:
            try:
                for segment in self.segments:
                    wanted = order(segment.last) > low and (high is None or order(segment.first) <= high)
                    if wanted and segment.name not in done:
                        tables = self._files.range(segment, low, high, columns)
                        first = next(tables, None)  # a segment that is open can be read though it is deleted
                        done.add(segment.name)
                        if first is not None:
                            yield first
                        yield from tables
                return
            except FileNotFoundError:
                self.refresh()  # a compaction deleted this segment; its rows are in the new one

    def _though_compacted(self, read: Callable[[], T]) -> T:
        """Return ``read()``, which is repeated if a compaction deleted a segment meanwhile."""
        while True:
            try:
                return read()
            except FileNotFoundError:
                self.refresh()

    def _listed(self) -> dict[str, Segment]:
        missed: set[str] = set()
        while True:
            found: dict[str, Segment] = {}
            try:
                for name, size in self._files.sizes().items():
                    # Described anew: a retraction may have replaced a segment by a smaller one of its name.
                    found[name] = self._files.segment(name, size)
            except FileNotFoundError:
                if name in missed:
                    raise
                # A compaction deleted it after it was listed. Its rows are in a segment that was written before then.
                missed.add(name)
                continue
            return found


def _texts(table: pa.Table, column: str) -> list[str]:
    return list(table.column(column).to_pylist())


def _keys(table: pa.Table) -> list[str]:
    """Return the keys of a table's signals."""
    callers = table.column("caller").to_pylist()
    return [key_of(caller or "", event_id) for caller, event_id in zip(callers, _texts(table, "event_id"), strict=True)]


def _distinct(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables with the first row of each signal."""
    seen: set[str] = set()
    for table in tables:
        keep = []
        for key in _keys(table):
            keep.append(key not in seen)
            seen.add(key)
        yield table.filter(pa.array(keep))


def ledger_to_read(url: str | Path) -> Ledger:
    """Open the ledger at ``url``, a directory or any fsspec URL, which must have signals.

    Raises:
        NoLedger: There is no ledger, or no signal in it.
        CorruptSegment: A segment cannot be read.
    """
    ledger = Ledger(url, writable=False)
    if not ledger.segments:
        raise NoLedger(f"{url}: there is no ledger, or no signal in it")
    return ledger
