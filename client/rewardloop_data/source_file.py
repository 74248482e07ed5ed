"""Reads the rows of a file: JSON lines, a JSON array, a table or Parquet, also packed. The first bytes tell which."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from rewardloop_data.containers import (
    DAMAGE,
    Unpackable,
    array_items,
    in_utf8,
    kind_of_text,
    packing,
    table_rows,
    unpacked,
    without_packing,
)
from rewardloop_data.rows import Json, RowError, parse_line

_HEAD_BYTES = 65536
_PARQUET_ROWS = 1000
_PARQUET_MAGIC = b"PAR1"
STANDARD_INPUT = "-"


class UnreadableFile(Exception):
    """Raised for a file that cannot be read, or not to its end. The message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file.

    Attributes:
        number: Its line, or its row in an array, a table or Parquet, counted from 1.
        offset: Bytes of the file that have been read so far.
        raw: The row as it is in the file. It is decoded only by `value`, so that skipping rows costs little.
        problem: What is wrong with the row; "" for nothing.
    """

    number: int
    offset: int
    raw: bytes | dict[str, Any] | Json
    problem: str = ""

    def value(self) -> Json:
        """Return the row as a JSON value. Raises RowError if it is none."""
        if self.problem:
            raise RowError(self.problem)
        return parse_line(self.raw) if isinstance(self.raw, bytes) else cast(Json, self.raw)

    def kept(self) -> Json:
        """Return the row for the file of rejected rows: its JSON value, or its text if it is not JSON."""
        try:
            return self.value()
        except RowError:
            return self.raw.decode("utf-8", "replace") if isinstance(self.raw, bytes) else cast(Json, self.raw)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of rows, with its size and the sha256 of its first 64 KiB, by which it is recognised.

    Attributes:
        path: Where its bytes are.
        size: Its bytes.
        head_sha256: The hash.
        named: What it is called, if it is not a file of this machine: a URL, or "stdin".
        is_guarded: Whether the cells of a table were guarded from spreadsheets; see `formulas`.
    """

    path: Path
    size: int
    head_sha256: str
    named: str = ""
    is_guarded: bool = False

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Open ``path`` to learn its size and hash. Raises UnreadableFile if it is no file or empty."""
        if path.is_dir():
            raise UnreadableFile(f"{path}: is a directory")
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError as error:
            raise UnreadableFile(f"{path}: {(error.strerror or str(error)).lower()}") from error
        if not head:
            raise UnreadableFile(f"{path}: is empty")
        return cls(path, size, hashlib.sha256(head).hexdigest())

    @property
    def name(self) -> str:
        """The name for messages and for the files beside it: the last part of the path or URL."""
        return self.named.rstrip("/").rpartition("/")[2] or self.path.name

    @property
    def shown(self) -> str:
        """The path or URL."""
        return self.named or str(self.path)

    def sha256(self) -> str:
        """Return the hash of all bytes. Raises UnreadableFile."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UnreadableFile(f"{self.shown}: {(error.strerror or str(error)).lower()}") from error

    def lines(self) -> Iterator[Line]:
        """Yield every row that is not blank.

        Raises:
            UnreadableFile: The file is in no known format, or damaged. Rows before the damage have been yielded.
        """
        with self.path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            if head.startswith(_PARQUET_MAGIC) or self.name.lower().endswith((".parquet", ".pq")):
                yield from self._parquet(file)
                return
            number = 0
            try:
                packed = packing(head, self.name)
                bytes_within, inner = unpacked(file, packed)
                for line in self._rows(file, in_utf8(bytes_within), inner or without_packing(self.name)):
                    yield line
                    number = line.number
            except Unpackable as error:
                raise UnreadableFile(f"{self.shown}: {error}") from error
            except DAMAGE as error:
                how = packed or "packed"
                raise UnreadableFile(
                    f"{self.shown}: the {how} data is cut off or damaged after line {number}"
                ) from error
            except OSError as error:  # the codecs of bz2 raise it too, without an errno
                if error.errno is None:
                    raise UnreadableFile(
                        f"{self.shown}: the {packed} data is cut off or damaged after line {number}"
                    ) from error
                raise UnreadableFile(f"{self.shown}: cannot be read after line {number}: {error.strerror}") from error
            except (UnicodeError, ValueError) as error:
                raise UnreadableFile(f"{self.shown}: cannot be read after row {number}: {error}") from error

    def _rows(self, file: IO[bytes], text: IO[bytes], name: str) -> Iterator[Line]:
        head = bytes(cast(Any, text).peek(_HEAD_BYTES)[:_HEAD_BYTES])
        if head.startswith(_PARQUET_MAGIC):
            raise Unpackable("holds a Parquet file: unpack it first")
        kind = kind_of_text(head, name)
        if kind == "lines":
            for number, raw in enumerate(text, start=1):
                if line := raw.strip():
                    yield Line(number, file.tell(), line)
        elif kind == "array":
            for number, value in enumerate(array_items(text), start=1):
                yield Line(number, file.tell(), value)
        else:
            rows = table_rows(text, "," if kind == "csv" else "\t", self.is_guarded)
            for number, row in enumerate(rows, start=1):
                is_bad = isinstance(row, str)
                yield Line(number, file.tell(), None if is_bad else row, str(row) if is_bad else "")

    def _parquet(self, file: IO[bytes]) -> Iterator[Line]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise UnreadableFile(
                f"{self.shown}: reading Parquet needs pyarrow: pip install 'rewardloop[parquet]'"
            ) from error
        try:
            table = parquet.ParquetFile(file)
            rows, number = max(1, table.metadata.num_rows), 0
            for batch in table.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Line(number, self.size * number // rows, row)
        except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:  # of values that Python cannot hold
            first = str(error).splitlines()[0]
            raise UnreadableFile(f"{self.shown}: is not a readable Parquet file: {first}") from error


@contextmanager
def opened(location: str) -> Iterator[SourceFile]:
    """Open a path, a URL that fsspec knows, or standard input ("-").

    What is no file of this machine is copied to a temporary file first, because its rows are read twice.

    Raises:
        UnreadableFile: It cannot be read, or is empty.
    """
    path = Path(location)
    if location != STANDARD_INPUT and "://" not in location and (path.is_file() or not path.exists() or path.is_dir()):
        yield SourceFile.of(path)
        return
    with tempfile.TemporaryDirectory(prefix="rewardloop-") as folder:
        name = "stdin" if location == STANDARD_INPUT else location.rstrip("/").rpartition("/")[2]
        copy = Path(folder) / (name or "rows")
        _copy(location, copy)
        named = "stdin" if location == STANDARD_INPUT else location
        try:
            source = SourceFile.of(copy)
        except UnreadableFile as error:
            raise UnreadableFile(f"{named}: is empty") from error
        yield replace(source, named=named)


def _copy(location: str, copy: Path) -> None:
    try:
        with copy.open("wb") as target:
            if location == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, target)
            elif "://" not in location:  # a pipe
                with open(location, "rb") as pipe:
                    shutil.copyfileobj(pipe, target)
            else:
                with _url(location) as remote:
                    shutil.copyfileobj(remote, target)
    except UnreadableFile:
        raise
    except Exception as error:  # file systems behind URLs raise errors of their own kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableFile(f"{location}: cannot be read: {lines[0]}") from error


def _url(location: str) -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise UnreadableFile(f"{location}: URLs need fsspec: pip install 'rewardloop[data]'") from error
    return fsspec.open(location, "rb")
