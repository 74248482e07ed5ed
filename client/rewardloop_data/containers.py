"""Opens what files are packed in, and tells the kind of text within.

Files may be packed by gzip, zstd, bzip2, xz or zip, and hold UTF-8 or UTF-16: lines of JSON, a JSON array or a table.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import IO, Any, Literal, TypeAlias, cast

from rewardloop_data.formulas import unguarded
from rewardloop_data.rows import Json

Kind: TypeAlias = Literal["lines", "array", "csv", "tsv"]

_BOM = codecs.BOM_UTF8
_HEAD = 65536
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}
_JSON_NAMES = (".jsonl", ".json", ".ndjson")
_BLANKS = b" \t\r\n"
_HEADER = re.compile(r'"?[\w .\-\[\]]{1,60}"?')

# Errors of reading a damaged packed file. `_Zstd` turns zstandard's own error into an OSError.
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class Unpackable(Exception):
    """Raised for what cannot be opened. The message says why, without the file's name."""


def packing(head: bytes, name: str) -> str:
    """Return how a file is packed, "" for not at all. Raises Unpackable if its name says another way than its bytes."""
    found = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), "")
    named = _SUFFIXES.get(PurePath(name.lower()).suffix, "")
    if named and named != found:
        raise Unpackable(f"is not a {named} file")
    return found


def unpacked(file: IO[bytes], packed: str) -> tuple[IO[bytes], str]:
    """Return the bytes within a packed file, and the name that they have in it, if they have one.

    Raises:
        Unpackable: It is a zip file of several files, or the package that reads it is not installed.
        OSError: It is damaged; and what `DAMAGE` lists.
    """
    match packed:
        case "gzip":
            return cast(IO[bytes], gzip.GzipFile(fileobj=file)), ""
        case "bzip2":
            return cast(IO[bytes], bz2.BZ2File(file)), ""
        case "xz":
            return cast(IO[bytes], lzma.LZMAFile(file)), ""
        case "zstd":
            return io.BufferedReader(_Zstd(file)), ""
        case "zip":
            archive = zipfile.ZipFile(file)
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
            if len(names) != 1:
                raise Unpackable(f"holds {len(names)} files: unpack it and name those that are meant")
            if archive.getinfo(names[0]).flag_bits & 1:
                raise Unpackable("is encrypted: unpack it first")
            return archive.open(names[0]), names[0]
    return file, ""


class _Zstd(io.RawIOBase):
    """The bytes within a zstd file of one or more frames. What is wrong with it raises OSError or EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise Unpackable("reading zstd needs zstandard: pip install 'rewardloop[data]'") from error
        self._error: type[Exception] = zstandard.ZstdError
        self._file, self._left = file, b""
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = self._new()
        self._is_within = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            packed = self._file.read(_HEAD)
            if not packed:
                if self._is_within:
                    raise EOFError("the zstd data is cut off")
                return 0
            self._left = self._decompressed(packed)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _decompressed(self, packed: bytes) -> bytes:
        found = b""
        try:
            while packed:
                self._is_within = True
                found += self._frame.decompress(packed)
                packed = b""
                if self._frame.eof:
                    packed, self._is_within = self._frame.unused_data, False
                    self._frame = self._new()
        except self._error as error:
            raise EOFError(str(error)) from error
        return found


def in_utf8(text: IO[bytes]) -> IO[bytes]:
    """Return a text as UTF-8 without a byte order mark. Only UTF-16, with or without its mark, is recoded."""
    buffered = text if hasattr(text, "peek") else io.BufferedReader(cast(io.RawIOBase, text))
    head: bytes = cast(Any, buffered).peek(4)[:4]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        coding = "utf-16"
    elif len(head) == 4 and head[1] == 0 == head[3]:
        coding = "utf-16-le"
    elif len(head) == 4 and head[0] == 0 == head[2]:
        coding = "utf-16-be"
    else:
        if head.startswith(_BOM):
            buffered.read(len(_BOM))
        return buffered
    recoded = codecs.EncodedFile(cast(Any, buffered), "utf-8", coding)
    return cast(IO[bytes], io.BufferedReader(_Recoded(recoded)))


class _Recoded(io.RawIOBase):
    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or self._stream.read(_HEAD)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def kind_of_text(head: bytes, name: str) -> Kind:
    """Return how rows stand in a text, by the name of its file without the packing, else by its first bytes."""
    suffix = PurePath(name.lower()).suffix
    if suffix in (".csv", ".tsv"):
        return "csv" if suffix == ".csv" else "tsv"
    text = head.lstrip(_BLANKS)
    if text.startswith(b"[") and text[1:].lstrip(_BLANKS)[:1] == b"{":
        return "array"
    if suffix in _JSON_NAMES or text[:1] in (b"{", b"[", b""):
        return "lines"
    first = text.partition(b"\n")[0].decode("utf-8", "replace").strip()
    for kind, between in (("tsv", "\t"), ("csv", ",")):
        cells = first.split(between)
        if len(cells) > 1 and all(_HEADER.fullmatch(cell) for cell in cells):
            return cast(Kind, kind)
    return "lines"


def without_packing(name: str) -> str:
    """Return a file's name without the suffix of its packing."""
    path = PurePath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in _SUFFIXES else name


def array_items(text: IO[bytes]) -> Iterator[Json]:
    """Yield the values of a JSON array, of which one at a time is in memory.

    Raises:
        ValueError: It is no JSON array, or does not end as one.
    """
    decode = json.JSONDecoder(parse_constant=_refuse).raw_decode
    stream = io.TextIOWrapper(text, encoding="utf-8")
    buffer, size, is_first = stream.read(_HEAD).lstrip().removeprefix("["), _HEAD, True
    while True:
        buffer = buffer.lstrip()
        if not buffer:
            more = stream.read(_HEAD)
            if not more:
                raise ValueError("the array does not end")
            buffer += more
            continue
        if buffer[0] == "]":
            if (buffer[1:] + stream.read(_HEAD)).strip():
                raise ValueError("something follows the end of the array")
            return
        if not is_first:
            if buffer[0] != ",":
                raise ValueError("no comma between two values")
            buffer = buffer[1:].lstrip()
        while True:
            try:
                value, end = decode(buffer)
                break
            except RecursionError as error:
                raise ValueError("a value is nested too deeply") from error
            except ValueError:
                more = stream.read(size)
                if not more:
                    raise
                size, buffer = 2 * size, (buffer + more).lstrip()
        yield cast(Json, value)
        buffer, size, is_first = buffer[end:], _HEAD, False


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# Columns of tables whose cells are numbers, or true and false, and those whose cells may hold JSON.
_SCALARS = frozenset(
    (
        *("label", "labels", "up", "down", "rating", "minimum", "maximum", "strength", "margin", "preference_strength"),
        *("overall_preference", "score_chosen", "score_rejected", "chosen_score", "rejected_score", "chosen_rating"),
        *("rejected_rating", "score_A", "score_B", "score_0", "score_1", "choice", "tie", "is_tie", "turn"),
        *("better_response_id", "safer_response_id", "winner_model_a", "winner_model_b", "winner_tie"),
    )
)
# Lists and objects, in JSON.
_NESTED = frozenset(
    (
        *("responses", "annotations", "ranking", "order", "ranks", "votes", "messages", "conversations", "tools"),
        *("conversation_a", "conversation_b", "completions", "answers", "input", "info", "summaries", "question"),
        *("fields", "scores", "data", "context", "winner"),
    )
)
# Texts, or conversations in JSON.
_SPOKEN = frozenset(("prompt", "chosen", "rejected", "completion", "response", "context", "edited_text"))


def table_rows(text: IO[bytes], between: str, is_guarded: bool = False) -> Iterator[dict[str, Json] | str]:
    """Yield the rows of a table with a header, as objects without empty cells; a text is what is wrong with a row.

    Args:
        text: The table.
        between: What separates cells.
        is_guarded: Whether its cells were guarded from spreadsheets, and are given back; see `formulas`.

    Raises:
        ValueError: The table has no sound header, or quotes that do not end.
    """
    read = unguarded if is_guarded else str
    csv.field_size_limit(2**31 - 1)
    lines = io.TextIOWrapper(text, encoding="utf-8", newline="")
    rows = csv.reader(lines, delimiter=between, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) != len(header) or not all(header):
            raise ValueError("a column has no name, or two have the same")
        is_indexed = "responses" in header
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                yield f"has {len(cells)} cells, and the header {len(header)}"
                continue
            given = ((key, read(cell)) for key, cell in zip(header, cells, strict=True) if cell)
            yield {key: _cell(key, cell, is_indexed) for key, cell in given}
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _cell(key: str, cell: str, is_indexed: bool) -> Json:
    """Return a cell's value. Texts stay texts, unless their column holds numbers, or they are JSON lists or objects."""
    if key in _SCALARS or (key == "chosen" and is_indexed):
        low = cell.strip().lower()
        try:
            value = json.loads(low)
        except ValueError:
            return cell
        return float(value) if isinstance(value, float) and not value.is_integer() else _whole(value)
    start = cell.lstrip()
    if (key in _NESTED and start[:1] in ("[", "{")) or (
        key in _SPOKEN and re.match(r'\[\s*\{\s*"(?:role|content)"', start)
    ):
        try:
            return cast(Json, json.loads(cell))
        except ValueError:
            return cell
    return cell


def _whole(value: Any) -> Json:
    return int(value) if isinstance(value, float) else cast(Json, value)
