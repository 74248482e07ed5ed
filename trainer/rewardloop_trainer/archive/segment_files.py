"""The files of the ledger's segments: listed, opened, read by ranges of stream ids, and written whole.

A segment is written under a temporary name, fsynced and renamed, so that it is whole or absent. An object store's put
is atomic in itself.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.ledger_columns import SCHEMA, whole
from rewardloop_trainer.archive.segment_index import Footer, SegmentIndex
from rewardloop_trainer.archive.small_files import SmallFiles

log = structlog.get_logger()

_REPLACES = b"rewardloop.replaces"
_TEMPORARY = ".writing-"
_RETRACTIONS = "retractions.json"
_ERASED = "erased.json"
# Rows and bytes, as columns in memory, that are read together.
_ROW_GROUP, _GROUP_BYTES = 10_000, 64 * 2**20


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


class SegmentFiles:
    """The segments of the ledger at ``url``, a directory or any fsspec URL."""

    def __init__(self, url: str | Path, fence: Fence | None) -> None:
        self._fence = fence
        self._fs, root = fsspec.core.url_to_fs(str(url))
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self._index = SegmentIndex(self._fs, self._root)
        self.small = SmallFiles(self._fs, self._root, self._is_local, self.held)

    def make(self) -> None:
        """Make the directory, and finish what a killed process left: delete half-written files, and the segments that
        a compaction replaced but did not come to delete."""
        self._fs.makedirs(self._root, exist_ok=True)
        if self._is_local:
            for path in Path(self._root).glob(f"{_TEMPORARY}*"):
                path.unlink()
        sizes = self.sizes()
        replaced = {old for name, size in sizes.items() for old in self._footer(name, size).replaces}
        self.delete(sorted(replaced & sizes.keys()))

    def held(self) -> AbstractContextManager[None]:
        """Return a block that may make something visible. Entering it raises `Fenced` if another trainer leads."""
        return nullcontext() if self._fence is None else self._fence.held()

    def name(self, first: str, last: str) -> str:
        """Return the name of this leader's segment with these first and last stream ids."""
        return f"{first}_{last}{self._fence.suffix if self._fence else ''}.parquet"

    def segment(self, name: str, size: int) -> Segment:
        """Describe a segment. Raises `CorruptSegment`, and FileNotFoundError if it has been deleted."""
        first, _, last = name.removesuffix(".parquet").partition(".e")[0].partition("_")
        try:
            order(first), order(last)
        except ValueError as error:
            raise CorruptSegment(f"{self._root}/{name}: {error}") from error
        return Segment(name, first, last, self._footer(name, size).rows)

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a whole segment, or some of its columns. A column that did not exist when it was written is null."""
        with self._opened(name) as file:
            table = file.read(columns=columns, use_threads=False)
            return _with_columns(table, columns) if columns else whole(table)

    def groups(self, name: str) -> Iterator[pa.Table]:
        """Yield a segment a row group at a time."""
        with self._opened(name) as file:
            for group in range(file.num_row_groups):
                yield whole(file.read_row_group(group, use_threads=False))

    def size(self, name: str) -> int:
        """Return the bytes of the file of a listed segment."""
        return self._index.size(name)

    def column(self, segment: Segment, name: str) -> list[Any]:
        return list(self.read(segment.name, [name]).column(0).to_pylist())

    def range(
        self, segment: Segment, low: tuple[int, int], high: tuple[int, int] | None, columns: list[str] | None
    ) -> Iterator[pa.Table]:
        """Yield the rows of a segment with low < stream id <= high, at most `_ROW_GROUP` at a time."""
        is_whole = order(segment.first) > low and (high is None or order(segment.last) <= high)
        with self._opened(segment.name) as file:
            for group in range(file.num_row_groups):
                is_wanted = None
                if not is_whole:
                    ids = file.read_row_group(group, columns=["stream_id"], use_threads=False).column(0).to_pylist()
                    is_wanted = [(key := order(i)) > low and (high is None or key <= high) for i in ids]
                    if not any(is_wanted):
                        continue
                table = file.read_row_group(group, columns=columns, use_threads=False)
                table = _with_columns(table, columns) if columns else whole(table)
                table = table if is_wanted is None else table.filter(pa.array(is_wanted))
                for start in range(0, table.num_rows, _ROW_GROUP):  # segments of earlier versions have one group
                    yield table.slice(start, _ROW_GROUP)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every segment by its name."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {str(each["name"]).rstrip("/").rsplit("/", 1)[-1]: int(each["size"] or 0) for each in entries}
        return {n: s for n, s in sizes.items() if n.endswith(".parquet") and not n.startswith(_TEMPORARY)}

    def write(self, name: str, tables: Iterable[pa.Table], replaces: Collection[str] = ()) -> int:
        """Write the rows of tables in `SCHEMA` as one segment, and return how many there are.

        The segment is on disk when this returns. After an exception it is not in the ledger. No row group has more than
        `_GROUP_BYTES`, unless it has a single row, so that no reader needs much more memory.
        """
        data, rows = io.BytesIO(), 0
        metadata = {_REPLACES: json.dumps(sorted(replaces)).encode()} if replaces else None
        with pq.ParquetWriter(data, SCHEMA.with_metadata(metadata), compression="zstd") as writer:
            for group in _groups(tables):
                writer.write_table(group, row_group_size=_ROW_GROUP)
                rows += group.num_rows
        target = f"{self._root}/{name}"
        if not self._is_local:
            with self.held():
                self._fs.pipe_file(target, data.getvalue())
        else:
            self._write_local(name, target, data)
        self._index.add(name, Footer(data.getbuffer().nbytes, rows, tuple(sorted(replaces))))
        return rows

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._fs.rm_file(f"{self._root}/{name}")

    def note_retraction(self) -> None:
        """Count a retraction. Raises `Fenced` and OSError."""
        self.small.write(_RETRACTIONS, json.dumps({"retractions": self.retractions() + 1}).encode())

    def retractions(self) -> int:
        """Return how many retractions were counted."""
        data = self.small.read(_RETRACTIONS)
        return 0 if data is None else int(json.loads(data)["retractions"])

    def erasures(self) -> list[str]:
        """Return the ids of the erasures that were carried out on these segments, in their order."""
        data = self.small.read(_ERASED)
        return [] if data is None else [str(each) for each in json.loads(data)["erasures"]]

    def note_erasures(self, erasure_ids: Iterable[str]) -> None:
        """Note that these erasures were carried out. Raises `Fenced` and OSError."""
        known = list(dict.fromkeys((*self.erasures(), *erasure_ids)))
        self.small.write(_ERASED, json.dumps({"erasures": known}).encode())

    def write_index(self, names: Collection[str]) -> None:
        """Keep the footers of these segments for the next start. Without them it is slower and nothing else."""
        if self._index.is_behind(names):
            try:
                with self.held():
                    self._index.write(names)
            except OSError as error:
                log.warning("the index of the ledger's segments is not written", reason=str(error))

    def _footer(self, name: str, size: int) -> Footer:
        footer = self._index.find(name, size)
        if footer is None:
            with self._opened(name) as file:
                metadata = file.schema_arrow.metadata or {}
                footer = Footer(size, file.metadata.num_rows, tuple(json.loads(metadata.get(_REPLACES, b"[]"))))
                self._index.add(name, footer)
        return footer

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a segment. What is wrong with its content raises `CorruptSegment`, inside the block too."""
        with self._fs.open(f"{self._root}/{name}", "rb") as file:
            try:
                yield pq.ParquetFile(file)
            except (ValueError, pa.ArrowException) as error:
                raise CorruptSegment(f"{self._root}/{name}: {error}") from error

    def _write_local(self, name: str, target: str, data: io.BytesIO) -> None:
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


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows in their order, in tables as large as a row group may be."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for part in (part for table in tables for part in _parts(table)):
        if waiting and (rows + part.num_rows > _ROW_GROUP or size + part.nbytes > _GROUP_BYTES):
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
        waiting.append(part)
        rows, size = rows + part.num_rows, size + part.nbytes
    if waiting:
        yield pa.concat_tables(waiting)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table in parts that are no larger than a row group may be, unless they have a single row."""
    for start in range(0, table.num_rows, _ROW_GROUP):
        left = [table.slice(start, _ROW_GROUP)]
        while left:
            part = left.pop()
            if part.num_rows > 1 and part.nbytes > _GROUP_BYTES:
                half = part.num_rows // 2
                left += [part.slice(half), part.slice(0, half)]
            else:
                yield part


def _with_columns(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return a table that has the columns. One that did not exist when the segment was written is null."""
    for field in (SCHEMA.field(column) for column in columns if column not in table.column_names):
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.replace_schema_metadata()
