"""The spool: keeps signals that Redis does not take in files of this machine, until Redis takes them.

DIR/lock              held by the one process that uses the directory
DIR/<number>.spool    records in the order in which they came. A record is the length of the payload and its CRC32 (4
                      bytes each, little-endian), then the payload. Deleted once all of it is in the stream.
DIR/<number>.erasing  the same without the signals of a person, while it is written to take the file's place
DIR/<number>.damaged  a file that could not be read to its end although later files follow. What could be read was used.

How much of a file is drained is not stored. After a crash its first part is drained again, and the stream recognises
those event ids. A record that a crash cut short was never acknowledged; it is removed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import structlog

log = structlog.get_logger()

_HEADER = struct.Struct("<II")
_SEGMENT_BYTES = 8 * 2**20


class SpoolInUse(Exception):
    """Raised when another process uses the directory."""


@dataclass(slots=True)
class _Segment:
    """One file.

    Attributes:
        path: Where it is.
        size: Bytes of its whole records.
        events: How many of its records are not drained yet.
        is_damaged: It could not be read to its end.
    """

    path: Path
    size: int = 0
    events: int = 0
    is_damaged: bool = False


class Spool:
    """Records in files of one directory.

    The calls block, and are for one thread at a time. `events`, `size_bytes` and `is_empty` may be read by any thread.
    """

    def __init__(self, directory: Path, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._offset = 0  # where the first record that is not drained begins in the first segment
        self._next = 1
        self._writing: int | None = None
        self._lock: int | None = None

    @property
    def events(self) -> int:
        """How many records wait."""
        return sum(segment.events for segment in tuple(self._segments))

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk, including drained records of a file that is not drained whole."""
        return sum(segment.size for segment in tuple(self._segments))

    @property
    def is_empty(self) -> bool:
        return not self._segments

    def open(self) -> None:
        """Lock the directory and find what an earlier process left there. Raises SpoolInUse or OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpoolInUse(f"another process spools to {self._directory}") from error
        for path in self._directory.glob("*.erasing"):
            path.unlink()
        paths = sorted(self._directory.glob("*.spool"), key=lambda path: int(path.stem))
        for path in paths:
            self._next = int(path.stem) + 1
            self._recover(path, is_last=path == paths[-1])
        if self.events:
            log.warning("signals of an earlier process wait in the spool", events=self.events, bytes=self.size_bytes)

    def close(self) -> None:
        for descriptor in (self._writing, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._writing = self._lock = None

    def write(self, payloads: Sequence[bytes]) -> None:
        """Append records and sync them to the disk. Raises OSError, and then none of them is in the spool."""
        if self._writing is None or self._segments[-1].size >= self._segment_bytes:
            self._begin_segment()
        segment, descriptor = self._segments[-1], self._writing
        assert descriptor is not None
        data = b"".join(part for p in payloads for part in (_HEADER.pack(len(p), zlib.crc32(p)), p))
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, memoryview(data)[written:])
            os.fsync(descriptor)
        except OSError:
            self._abandon(segment, descriptor)
            raise
        segment.size += len(data)
        segment.events += len(payloads)

    def read(self, most: int) -> list[bytes]:
        """Return the oldest payloads, at most ``most``. They stay in the spool until `drop`."""
        if not self._segments:
            return []
        found: list[bytes] = []
        with self._segments[0].path.open("rb") as file:
            file.seek(self._offset)
            while len(found) < min(most, self._segments[0].events):
                payload = _read_record(file)
                if payload is None:
                    raise OSError(f"{file.name} cannot be read at {self._offset}")
                found.append(payload)
        return found

    def drop(self, payloads: Sequence[bytes]) -> None:
        """Remove the payloads that `read` returned."""
        segment = self._segments[0]
        segment.events -= len(payloads)
        self._offset += sum(_HEADER.size + len(payload) for payload in payloads)
        if not segment.events:
            self._finish_segment()

    def erase(self, is_erased: Callable[[bytes], bool]) -> int:
        """Take the payloads for which ``is_erased`` is true out of every file, whether they are drained or not.

        Call it between `drop` and `read`. A process that is killed meanwhile leaves each file as it was, or without
        them.

        Returns:
            How many payloads are gone.

        Raises:
            OSError: If a file cannot be read or written.
        """
        if self._writing is not None:  # the next write begins a file
            os.close(self._writing)
            self._writing = None
        return sum(self._erase_in(segment, is_erased) for segment in tuple(self._segments))

    def unsearched(self) -> list[str]:
        """Return the files of the directory that hold what cannot be read, and is therefore not searched."""
        damaged = [segment.path for segment in self._segments if segment.is_damaged]
        return sorted(map(str, [*damaged, *self._directory.glob("*.damaged")]))

    def _erase_in(self, segment: _Segment, is_erased: Callable[[bytes], bool]) -> int:
        start = self._offset if segment is self._segments[0] else 0
        kept: list[bytes] = []
        gone = place = 0
        with segment.path.open("rb") as file:
            while (payload := _read_record(file)) is not None:
                if is_erased(payload):
                    gone += 1
                elif place >= start:
                    kept.append(payload)
                place += _HEADER.size + len(payload)
            file.seek(segment.size)
            torn = file.read()
        if not gone:
            return 0
        segment.size, segment.events = _rewrite(segment.path, kept, torn), len(kept)
        if start:
            self._offset = 0
        if not kept:
            self._segments.remove(segment)
            if segment.is_damaged:
                segment.path.rename(segment.path.with_suffix(".damaged"))
            else:
                segment.path.unlink()
        self._sync_directory()
        return gone

    def _begin_segment(self) -> None:
        path = self._directory / f"{self._next:08}.spool"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._next += 1
        self._sync_directory()
        if self._writing is not None:
            os.close(self._writing)
        self._writing = descriptor
        self._segments.append(_Segment(path))

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _abandon(self, segment: _Segment, descriptor: int) -> None:
        """Undo a failed write. The next write tries another file."""
        os.close(descriptor)
        self._writing = None
        if not segment.events:
            self._segments.remove(segment)
            segment.path.unlink(missing_ok=True)
            if not self._segments:
                self._offset = 0
        else:
            os.truncate(segment.path, segment.size)

    def _finish_segment(self) -> None:
        segment = self._segments.pop(0)
        self._offset = 0
        if not self._segments and self._writing is not None:
            os.close(self._writing)
            self._writing = None
        if segment.is_damaged:
            segment.path.rename(segment.path.with_suffix(".damaged"))
        else:
            segment.path.unlink()

    def _recover(self, path: Path, *, is_last: bool) -> None:
        segment = _Segment(path)
        with path.open("rb") as file:
            while (payload := _read_record(file)) is not None:
                segment.size += _HEADER.size + len(payload)
                segment.events += 1
        torn = path.stat().st_size - segment.size
        if torn and is_last:
            log.warning("cut a torn record off the spool", file=str(path), bytes=torn)
            os.truncate(path, segment.size)
        elif torn:
            log.error("a file of the spool is damaged", file=str(path), readable_events=segment.events, bytes=torn)
            segment.is_damaged = True
        self._segments.append(segment)
        if not segment.events:
            self._segments.remove(segment)
            path.rename(path.with_suffix(".damaged")) if segment.is_damaged else path.unlink()


def _rewrite(path: Path, payloads: Sequence[bytes], torn: bytes) -> int:
    """Put a file with these payloads, and bytes that are none, in the place of a file. Returns the payloads' bytes."""
    data = b"".join(part for p in payloads for part in (_HEADER.pack(len(p), zlib.crc32(p)), p))
    writing = path.with_suffix(".erasing")
    descriptor = os.open(writing, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data + torn)
        file.flush()
        os.fsync(file.fileno())
    os.replace(writing, path)
    return len(data)


def _read_record(file: BufferedReader) -> bytes | None:
    """Return the next payload, or None if no whole record follows.

    A length of 0 is no record: a disk may leave zeros of a write that a power cut interrupted.
    """
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    length, checksum = _HEADER.unpack(header)
    payload = file.read(length) if 0 < length < 2**30 else b""
    return payload if payload and len(payload) == length and zlib.crc32(payload) == checksum else None
