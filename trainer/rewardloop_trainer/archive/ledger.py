"""The ledger: every archived signal, in immutable Parquet segments.

A segment ``<first_stream_id>_<last_stream_id>.parquet`` is written under a temporary name, fsynced and renamed, so
that it is whole or absent. An object store's put is atomic in itself. Compaction writes one segment that names the
segments it replaces, and only then deletes those. A reader in between drops the events that it meets twice. A
compaction that was cut short is finished the next time the ledger is opened for writing.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.ledger_columns import Recorded, from_table, to_table, whole

T = TypeVar("T")

_REPLACES = b"rewardloop.replaces"
_TEMPORARY = ".writing-"
_READ_ROWS = 10_000


class CorruptSegment(Exception):
    """Raised when a file of the ledger is not a Parquet file of the ledger's schema."""


def order(stream_id: str) -> tuple[int, int]:
    """Return the sort key of a stream id such as "1763980000000-0". Raises ValueError for any other text."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """One file: its name, the lowest and highest stream id in it, and its rows."""

    name: str
    first: str
    last: str
    rows: int


class Ledger:
    """Appends to and reads the ledger at ``url``, a directory or any fsspec URL.

    One process writes at a time, which the trainer's lock and ``fence`` ensure. Others may read with
    ``writable=False`` meanwhile. Threads of one process may share an instance.
    """

    def __init__(self, url: str | Path, *, writable: bool = True, fence: Fence | None = None) -> None:
        self._fence = fence
        self._fs, root = fsspec.core.url_to_fs(str(url))
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        if writable:
            self._fs.makedirs(self._root, exist_ok=True)
            self._finish_interrupted()
        self.refresh()

    def refresh(self) -> None:
        """List the segments again, to see what another process wrote."""
        with self._lock:
            self._segments = self._listed(self._segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in stream order."""
        with self._lock:
            return tuple(sorted(self._segments.values(), key=lambda s: (order(s.first), order(s.last))))

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
        return nullcontext() if self._fence is None else self._fence.held()

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
        segment = Segment(self._name(ids[0], ids[-1]), ids[0], ids[-1], len(rows))
        self._write(segment.name, to_table(rows))
        with self._lock:
            self._segments[segment.name] = segment
        return segment

    def scan(self, after_stream_id: str | None = None, until_stream_id: str | None = None) -> Iterator[Recorded]:
        """Yield the rows with after < stream id <= until, segment by segment, each event once.

        Raises:
            CorruptSegment: If a segment cannot be read.
        """
        low = order(after_stream_id) if after_stream_id else (-1, 0)
        high = order(until_stream_id) if until_stream_id else None
        seen: set[str] = set()
        for table in self._tables(low, high):
            for row in from_table(table):
                key = order(row.stream_id)
                if key > low and (high is None or key <= high) and row.event.event_id not in seen:
                    seen.add(row.event.event_id)
                    yield row

    def event_ids(self, newest: int | None = None) -> list[str]:
        """Return the event id of every row in stream order, repeated ones included.

        With ``newest``, only as many of the newest segments are read as are needed for that many rows.
        """
        return self._though_compacted(lambda: self._event_ids(newest))

    def _event_ids(self, newest: int | None) -> list[str]:
        chosen: list[Segment] = []
        rows = 0
        for segment in reversed(self.segments):
            if newest is not None and rows >= newest:
                break
            chosen.append(segment)
            rows += segment.rows
        return [i for segment in reversed(chosen) for i in self._column(segment, "event_id")]

    def holds(self, stream_ids: Iterable[str]) -> set[str]:
        """Return which of these stream ids the ledger has."""
        wanted = set(stream_ids)
        return self._though_compacted(lambda: self._held_of(wanted))

    def _held_of(self, wanted: set[str]) -> set[str]:
        found: set[str] = set()
        for segment in self.segments:
            first, last = order(segment.first), order(segment.last)
            if any(first <= order(i) <= last for i in wanted - found):
                found |= wanted & set(self._column(segment, "stream_id"))
        return found

    def rows_after(self, stream_id: str | None) -> int:
        """Return how many rows have a higher stream id than this one; all rows if it is None."""
        if stream_id is None:
            return self.row_count
        return self._though_compacted(lambda: self._rows_after(order(stream_id)))

    def _rows_after(self, low: tuple[int, int]) -> int:
        rows = 0
        for segment in self.segments:
            if order(segment.first) > low:
                rows += segment.rows
            elif order(segment.last) > low:
                rows += sum(order(i) > low for i in self._column(segment, "stream_id"))
        return rows

    def arrivals(self, after_stream_id: str | None = None, until_stream_id: str | None = None) -> list[float]:
        """Return the arrival times, in Unix seconds, of the rows with after < stream id <= until."""
        low = order(after_stream_id) if after_stream_id else (-1, 0)
        high = order(until_stream_id) if until_stream_id else None
        found: list[float] = []
        for table in self._tables(low, high, ["stream_id", "arrival_time"]):
            times = table.column("arrival_time").cast(pa.int64()).to_pylist()
            keys = map(order, table.column("stream_id").to_pylist())
            found += [t / 1e6 for key, t in zip(keys, times, strict=True) if key > low and (not high or key <= high)]
        return found

    def compact(self, *, segments: int = 32, small_rows: int = 5_000, target_rows: int = 200_000) -> Segment | None:
        """Merge neighbouring small segments into one if there are at least ``segments`` of them.

        Returns the merged segment, or None if nothing was merged.
        """
        merged: list[Segment] = []
        for segment in self.segments:
            if segment.rows < small_rows and sum(s.rows for s in merged) + segment.rows <= target_rows:
                merged.append(segment)
            elif len(merged) >= segments:
                break
            else:
                merged = []
        if len(merged) < segments:
            return None
        table = _distinct(pa.concat_tables([self._read(s.name) for s in merged]))
        first = min((s.first for s in merged), key=order)
        last = max((s.last for s in merged), key=order)
        whole = Segment(self._name(first, last), first, last, table.num_rows)
        replaced = [s.name for s in merged if s.name != whole.name]
        self._write(whole.name, table.replace_schema_metadata({_REPLACES: json.dumps(replaced).encode()}))
        with self._lock:
            self._segments[whole.name] = whole
            for name in replaced:
                del self._segments[name]
        self._delete(replaced)
        return whole

    def _tables(
        self, low: tuple[int, int], high: tuple[int, int] | None, columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        done: set[str] = set()
        while True:
            try:
                for segment in self.segments:
                    wanted = order(segment.last) > low and (high is None or order(segment.first) <= high)
                    if wanted and segment.name not in done:
                        table = self._read(segment.name, columns)
                        done.add(segment.name)
                        for start in range(0, table.num_rows, _READ_ROWS):
                            yield table.slice(start, _READ_ROWS)
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

    def _listed(self, known: Mapping[str, Segment]) -> dict[str, Segment]:
        missed: set[str] = set()
        while True:
            found: dict[str, Segment] = {}
            try:
                for name in self._names():
                    found[name] = known.get(name) or self._open(name)[0]
            except FileNotFoundError:
                if name in missed:
                    raise
                # A compaction deleted it after it was listed. Its rows are in a segment that was written before then.
                missed.add(name)
                continue
            return found

    def _names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return [name for name in names if name.endswith(".parquet") and not name.startswith(_TEMPORARY)]

    def _open(self, name: str) -> tuple[Segment, list[str]]:
        """Read the segment and the names that it replaces from the file's footer."""
        first, _, last = name.removesuffix(".parquet").partition(".e")[0].partition("_")
        try:
            order(first), order(last)
            with self._fs.open(f"{self._root}/{name}", "rb") as file:
                footer = pq.ParquetFile(file)
                metadata = footer.schema_arrow.metadata or {}
                return Segment(name, first, last, footer.metadata.num_rows), json.loads(metadata.get(_REPLACES, b"[]"))
        except (ValueError, pa.ArrowException) as error:
            raise CorruptSegment(f"{self._root}/{name}: {error}") from error

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        try:
            with self._fs.open(f"{self._root}/{name}", "rb") as file:
                table = pq.ParquetFile(file).read(columns=columns, use_threads=False)
                return table.replace_schema_metadata() if columns else whole(table)
        except (ValueError, pa.ArrowException) as error:
            raise CorruptSegment(f"{self._root}/{name}: {error}") from error

    def _column(self, segment: Segment, name: str) -> list[Any]:
        return list(self._read(segment.name, [name]).column(0).to_pylist())

    def _name(self, first: str, last: str) -> str:
        return f"{first}_{last}{self._fence.suffix if self._fence else ''}.parquet"

    def _write(self, name: str, table: pa.Table) -> None:
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        target = f"{self._root}/{name}"
        if not self._is_local:
            with self.held():
                self._fs.pipe_file(target, data.getvalue())
            return
        temporary = f"{self._root}/{_TEMPORARY}{self._fence.epoch if self._fence else 0}-{name}"
        try:
            with open(temporary, "wb") as file:
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            with self.held():
                os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        directory = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _finish_interrupted(self) -> None:
        """Delete half-written files, and the segments that a compaction replaced but did not come to delete."""
        if self._is_local:
            for path in Path(self._root).glob(f"{_TEMPORARY}*"):
                path.unlink()
        present = set(self._names())
        replaced = {old for name in present for old in self._open(name)[1]}
        self._delete(sorted(replaced & present))

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._fs.rm_file(f"{self._root}/{name}")


def _distinct(table: pa.Table) -> pa.Table:
    """Return the table with the first row of each event."""
    seen: set[str] = set()
    keep = []
    for event_id in table.column("event_id").to_pylist():
        keep.append(event_id not in seen)
        seen.add(event_id)
    return table.filter(pa.array(keep))
