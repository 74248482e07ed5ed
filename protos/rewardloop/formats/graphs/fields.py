"""Reads an ONNX file as protobuf fields, without the onnx package. The field numbers are those of onnx.proto.

Tensors' bytes are never copied, so that a large graph costs little.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotAGraph(ValueError):
    """Raised when the file cannot be read as a graph."""


def opened(path: Path) -> memoryview:
    """Return the bytes of the file, mapped into memory. Raises NotAGraph if it is empty."""
    if path.stat().st_size == 0:
        raise NotAGraph("the file is empty")
    with path.open("rb") as file:
        # The map is not closed here, because a slice of it may still be held when an error is raised. It closes with
        # its last slice.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield each field's number and its bytes, or its value if it holds a number. Numbers of fixed width are 0.

    Raises NotAGraph if the bytes are no message.
    """
    at, size = 0, len(data)
    while at < size:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
            if length > size - at:
                raise NotAGraph("a field is longer than the file")
            yield tag >> 3, data[at : at + length]
            at += length
            continue
        number = 0
        if kind == _VARINT:
            number, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise NotAGraph("a field is of a kind that onnx.proto does not have")
        if at > size or tag >> 3 == 0:
            raise NotAGraph("a field is cut off, or has no number")
        yield tag >> 3, number


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise NotAGraph("a number is cut off or too long")


def numbers(value: memoryview | int) -> Iterator[int]:
    """Yield the numbers of one occurrence of a repeated field, which may be packed. Raises NotAGraph."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def message(value: memoryview | int) -> memoryview:
    """Return the bytes of a field that holds a message. Raises NotAGraph if it holds a number."""
    if isinstance(value, int):
        raise NotAGraph("a number stands for a message")
    return value


def text(value: memoryview | int) -> str:
    """Return the text of a field. Raises NotAGraph if it holds a number."""
    return bytes(message(value)).decode("utf-8", "surrogateescape")
