"""Searches every file of a deployment for bytes, also in what is compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from rewardloop.v1 import feedback_pb2


def files_with(root: Path, *needles: bytes) -> list[Path]:
    """The files below a directory that hold one of the texts, as they are or after they are decompressed."""
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and any(n in data for data in contents(path) for n in needles)
    ]


def contents(path: Path) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them."""
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        yield sink.getvalue()
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"\x28\xb5\x2f\xfd":
        yield zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    elif data[:6] == b"\xfd7zXZ\x00":
        yield lzma.decompress(data)
    elif data[:3] == b"BZh":
        yield bz2.decompress(data)
    elif data[:4] == b"PK\x03\x04":  # npz too
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)


def texts_of(event: feedback_pb2.FeedbackEvent) -> tuple[str, ...]:
    said = event.prompt.text or "".join(turn.content for turn in event.prompt.conversation.messages)
    return said, *event.responses, event.annotator_id
