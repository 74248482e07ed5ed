"""Reads the rows of a file: JSONL, plain or gzipped, or Parquet. The first bytes tell which."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rewardloop_data.rows import Json, RowError, parse_line

_HEAD_BYTES = 65536
_PARQUET_ROWS = 1000
_GZIP_MAGIC, _PARQUET_MAGIC, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"


class UnreadableFile(Exception):
    """Raised for a file that cannot be read, or not to its end. The message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a file.

    Attributes:
        number: Its line, or its row in Parquet, counted from 1.
        offset: Bytes of the file that have been read so far.
        raw: The row as it is in the file. It is decoded only by `value`, so that skipping rows costs little.
    """

    number: int
    offset: int
    raw: bytes | dict[str, Any]

    def value(self) -> Json:
        """Return the row as a JSON value. Raises RowError if it is none."""
        return parse_line(self.raw) if isinstance(self.raw, bytes) else cast(Json, self.raw)

    def kept(self) -> Json:
        """Return the row for the file of rejected rows: its JSON value, or its text if it is not JSON."""
        try:
            return self.value()
        except RowError:
            return cast(bytes, self.raw).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of rows, with its size and the sha256 of its first 64 KiB, by which it is recognised."""

    path: Path
    size: int
    head_sha256: str

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

    def lines(self) -> Iterator[Line]:
        """Yield every row that is not blank.

        Raises:
            UnreadableFile: The file is in no known format, or damaged. Rows before the damage have been yielded.
        """
        with self.path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            name = self.path.name.lower()
            if magic == _PARQUET_MAGIC or name.endswith((".parquet", ".pq")):
                yield from self._parquet(file)
            elif magic[:2] == _GZIP_MAGIC:
                yield from self._text(file, cast(IO[bytes], gzip.GzipFile(fileobj=file)))
            elif name.endswith(".gz"):
                raise UnreadableFile(f"{self.path}: is not a gzip file")
            else:
                yield from self._text(file, file)

    def _text(self, file: IO[bytes], text: IO[bytes]) -> Iterator[Line]:
        number = 0
        try:
            for number, raw in enumerate(text, start=1):
                line = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
                if line:
                    yield Line(number, file.tell(), line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UnreadableFile(f"{self.path}: the gzip data is cut off or damaged after line {number}") from error
        except OSError as error:
            raise UnreadableFile(f"{self.path}: cannot be read after line {number}: {error.strerror}") from error

    def _parquet(self, file: IO[bytes]) -> Iterator[Line]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise UnreadableFile(
                f"{self.path}: reading Parquet needs pyarrow: pip install 'rewardloop[parquet]'"
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
            raise UnreadableFile(f"{self.path}: is not a readable Parquet file: {first}") from error
