"""Writes rows to a file: JSON lines, a JSON array, a table or Parquet, also packed. The file's name says which."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias, cast

from rewardloop_data.formulas import guarded

Container: TypeAlias = Literal["lines", "array", "csv", "parquet"]
STANDARD_OUTPUT = "-"
_CONTAINERS: Mapping[str, Container] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "array",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_ROWS_AT_ONCE = 1_000
# What a column of Parquet holds; "json" is JSON as text.
ColumnKind: TypeAlias = Literal["text", "json", "flag", "number", "integers", "texts", "messages"]
_MESSAGE_KEYS = {"role", "content"}
# A text that a reader of tables would take for a conversation.
_LIKE_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(?:role|content)"')


class UnwritableFile(Exception):
    """Raised for a file that cannot be written. The message is one line and names the file."""


class UnwritableRow(ValueError):
    """Raised for a row that a container cannot hold. The message says why."""


class Writer(Protocol):
    """Writes rows, and then their end."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row. Raises UnwritableRow, and then nothing of it is written."""

    def end(self) -> None:
        """Write what follows the last row."""


def container_of(name: str) -> tuple[Container, str]:
    """Return how rows stand in a file of this name, and the suffix of its packing. Raises UnwritableFile."""
    if name == STANDARD_OUTPUT:
        return "lines", ""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _PACKED else ""
    container = _CONTAINERS.get(suffixes[-1] if suffixes else "")
    if container is None:
        raise UnwritableFile(f"{name}: ends with none of {', '.join(_CONTAINERS)}, alone or with {', '.join(_PACKED)}")
    if container == "parquet" and packed:
        raise UnwritableFile(f"{name}: Parquet is packed in itself: leave {packed} out")
    return container, packed


@contextmanager
def writing(
    name: str, columns: Mapping[str, ColumnKind], *, replace: bool = False, csv_safe: bool = False
) -> Iterator[Writer]:
    """Give a writer of a file, which appears under its name when all of it is on disk. "-" is standard output.

    Args:
        name: The file.
        columns: Every key that a row may have, with the kind of its values, in the order of a table's columns.
        replace: Whether a file of that name is replaced.
        csv_safe: Whether texts of a table that a spreadsheet would run are guarded; see `formulas`.

    Raises:
        UnwritableFile: It exists, its name says no format, or no table with csv_safe, a package is missing, or the disk
            fails.
    """
    container, packed = container_of(name)
    if csv_safe and container != "csv":
        raise UnwritableFile(f"{name}: only the cells of .csv can be guarded from spreadsheets (--csv-safe)")
    if name == STANDARD_OUTPUT:
        writer = _writer(container, sys.stdout.buffer, columns, csv_safe)
        yield writer
        writer.end()
        sys.stdout.buffer.flush()
        return
    with whole(Path(name), replace=replace) as partial, partial.open("wb") as raw:
        with _packing(raw, packed) as file:
            writer = _writer(container, file, columns, csv_safe)
            yield writer
            writer.end()
        raw.flush()
        os.fsync(raw.fileno())


@contextmanager
def whole(path: Path, *, replace: bool) -> Iterator[Path]:
    """Give a temporary name beside ``path``, under which a file is written that then appears under its own name.

    Each writer has a temporary name of its own, so that two do not mix.

    Raises:
        UnwritableFile: The file exists and is not to be replaced, which is looked at before and after; the disk fails.
    """
    exists = UnwritableFile(f"{path}: exists already, and is not replaced")
    if path.exists() and not replace:
        raise exists
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.writing")
    try:
        yield partial
        if not replace:
            with contextlib.suppress(OSError):  # another process has it, or the file system has no links
                os.link(partial, path)
                return
            if path.exists():
                raise exists
        partial.replace(path)
    except OSError as error:
        raise UnwritableFile(f"{path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _packing(raw: IO[bytes], packed: str) -> Iterator[IO[bytes]]:
    match packed:
        case ".gz":
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
                yield cast(IO[bytes], file)
        case ".bz2":
            with bz2.BZ2File(raw, "wb") as file:
                yield cast(IO[bytes], file)
        case ".xz":
            with lzma.LZMAFile(raw, "wb") as file:
                yield cast(IO[bytes], file)
        case ".zst":
            try:
                import zstandard
            except ModuleNotFoundError as error:
                raise UnwritableFile("writing zstd needs zstandard: pip install 'rewardloop[data]'") from error
            with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
                yield cast(IO[bytes], file)
        case _:
            yield raw


def _writer(container: Container, file: IO[bytes], columns: Mapping[str, ColumnKind], csv_safe: bool) -> Writer:
    match container:
        case "lines":
            return _Lines(file)
        case "array":
            return _Array(file)
        case "csv":
            return _Table(file, tuple(columns), csv_safe)
        case "parquet":
            return _Parquet(file, columns)


class _Lines:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(_json(row).encode() + b"\n")

    def end(self) -> None:
        pass


class _Array:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._between = b"[\n"

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(self._between + _json(row).encode())
        self._between = b",\n"

    def end(self) -> None:
        self._file.write(b"[]\n" if self._between == b"[\n" else b"\n]\n")


class _Table:
    """CSV. Lists and objects are JSON; a key that a row does not have is an empty cell."""

    def __init__(self, file: IO[bytes], columns: Sequence[str], is_safe: bool) -> None:
        self._columns = columns
        self._is_safe = is_safe
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._csv = csv.writer(self._text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._csv.writerow(columns)

    def write(self, row: Mapping[str, Any]) -> None:
        self._csv.writerow([self._cell(row.get(column)) for column in self._columns])

    def _cell(self, value: Any) -> str:
        # Numbers and JSON are no formulas, and stay what they are.
        return guarded(_cell(value)) if self._is_safe and isinstance(value, str) else _cell(value)

    def end(self) -> None:
        self._text.flush()
        self._text.detach()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return _json(value)
    if _LIKE_MESSAGES.match(value):
        raise UnwritableRow("a text reads as a list of messages, which a table cannot tell apart: write JSON lines")
    return value


class _Parquet:
    """Parquet, with messages as structs of role and content."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, ColumnKind]) -> None:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise UnwritableFile("writing Parquet needs pyarrow: pip install 'rewardloop[parquet]'") from error
        self._arrow: Any = arrow
        self._columns = columns
        self._schema: Any = arrow.schema([(key, _arrow_type(arrow, kind)) for key, kind in columns.items()])
        self._writer: Any = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if self._columns[key] == "messages" and any(each.keys() != _MESSAGE_KEYS for each in value):
                raise UnwritableRow("messages with tool calls or names have no place in Parquet: write JSON lines")
        self._rows.append({key: _json(value) if self._columns[key] == "json" else value for key, value in row.items()})
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def _arrow_type(arrow: Any, kind: ColumnKind) -> Any:
    message = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    return {
        "text": arrow.string(),
        "json": arrow.string(),
        "flag": arrow.bool_(),
        "number": arrow.float64(),
        "integers": arrow.list_(arrow.int64()),
        "texts": arrow.list_(arrow.string()),
        "messages": arrow.list_(message),
    }[kind]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
