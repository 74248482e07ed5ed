"""A backup: a directory, or one tar file, with the files of all parts and a list of them with their SHA-256.

`backup.json` is written last. Until then the backup has the ending ``.partial``, so that a whole one is known by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rewardloop_local.backup.errors import BackupError

MANIFEST = "backup.json"
FORMAT_VERSION = 1
_CHUNK = 4 * 2**20

# Called with the bytes of each piece that was copied or checked.
Moved = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a backup: its bytes and its SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What `backup.json` says: when the backup was made, by which version of rewardloop, and its files by name."""

    created_at: str
    code_version: str
    files: Mapping[str, StoredFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


class BundleWriter(ABC):
    """Writes a backup. `copy` may be called again for a name, whose last content counts."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.partial = target.with_name(f"{target.name}.partial")

    @abstractmethod
    def _write(self, name: str, source: BinaryIO, size: int) -> None:
        """Store ``size`` bytes of the source. Raises OSError."""

    @abstractmethod
    def _end(self) -> None:
        """Sync and close what was written. Raises OSError."""

    @abstractmethod
    def discard(self) -> None:
        """Delete what was written."""

    def copy(self, name: str, source: BinaryIO, size: int, moved: Moved) -> StoredFile:
        """Store a file, and return what the list of files says of it. Raises BackupError if it was shortened."""
        hashing = _Hashing(source, moved)
        self._write(name, hashing, size)  # type: ignore[arg-type]  # it is only read
        if hashing.size != size:
            raise BackupError(f"{name} was shortened while it was copied")
        return StoredFile(size, hashing.digest.hexdigest())

    def finish(self, contents: Contents) -> None:
        """Write the list of files, and give the backup its name."""
        data = json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "created_at": contents.created_at,
                "code_version": contents.code_version,
                "files": {name: [file.size, file.sha256] for name, file in sorted(contents.files.items())},
            },
            indent=1,
        ).encode()
        self._write(MANIFEST, io.BytesIO(data), len(data))
        self._end()
        os.rename(self.partial, self.target)
        _fsync(self.target.parent)


class DirectoryWriter(BundleWriter):
    """Writes a directory."""

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.partial.mkdir(mode=0o700)

    def _write(self, name: str, source: BinaryIO, size: int) -> None:
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", opener=_private) as file:
            left = size
            while left and (data := source.read(min(left, _CHUNK))):
                file.write(data)
                left -= len(data)
            file.flush()
            os.fsync(file.fileno())

    def _end(self) -> None:
        for directory in (self.partial, *(path for path in self.partial.rglob("*") if path.is_dir())):
            _fsync(directory)

    def discard(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


class TarWriter(BundleWriter):
    """Writes one tar file, which is not compressed: weights and Parquet files hardly get smaller."""

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self._file = open(self.partial, "xb", opener=_private)  # noqa: SIM115 - closed by `_end` and `discard`
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `_end` and `discard`
            fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT
        )

    def _write(self, name: str, source: BinaryIO, size: int) -> None:
        about = tarfile.TarInfo(name)
        about.size, about.mode = size, 0o600
        self._tar.addfile(about, source)

    def _end(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)


def new_bundle(target: Path) -> BundleWriter:
    """Begin a backup. A target that ends in ``.tar`` is a file, every other one a directory.

    Raises:
        BackupError: If there is a file or directory of this name, or one that a killed backup has left.
    """
    writer = TarWriter if target.suffix == ".tar" else DirectoryWriter
    if target.exists():
        raise BackupError(f"{target} exists: give a new name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return writer(target)
    except FileExistsError as error:
        raise BackupError(f"{target}.partial exists: delete it if no other backup runs") from error


class BundleReader:
    """Reads a backup. Use it in a ``with`` block."""

    def __init__(self, source: Path) -> None:
        """Raises BackupError if it is no whole backup of a known format."""
        self._source = source
        self._tar: tarfile.TarFile | None = None
        try:
            if source.is_file():
                self._tar = tarfile.open(source, "r:")  # noqa: SIM115 - closed by `close`
            with self.opened(MANIFEST) as file:
                self.contents = _contents(json.loads(file.read()))
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            reason = "it has no backup.json" if isinstance(error, FileNotFoundError | KeyError) else str(error)
            raise BackupError(f"{source} is no whole backup: {reason}") from error

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading. Raises OSError or KeyError if the backup does not have it."""
        if self._tar is None:
            with (self._source / name).open("rb") as file:
                yield file
            return
        member = self._tar.extractfile(name)
        if member is None:
            raise KeyError(name)
        with member:
            yield member  # type: ignore[misc]  # it reads bytes

    def verify(self, moved: Moved) -> None:
        """Compare every file with its SHA-256. Raises BackupError that names the first one that differs."""
        for name, expected in self.contents.files.items():
            try:
                with self.opened(name) as file:
                    hashing = _Hashing(file, moved)
                    while hashing.read(_CHUNK):
                        pass
            except (OSError, KeyError, tarfile.TarError) as error:
                raise BackupError(f"{name} of the backup cannot be read: {error}") from error
            if StoredFile(hashing.size, hashing.digest.hexdigest()) != expected:
                raise BackupError(f"{name} of the backup was altered (its SHA-256 differs)")


class _Hashing:
    """Passes on what is read from a file, and hashes it."""

    def __init__(self, source: BinaryIO, moved: Moved) -> None:
        self._source = source
        self._moved = moved
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        self.size += len(data)
        self._moved(len(data))
        return data


def _contents(raw: Any) -> Contents:
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {raw['format_version']!r} is not {FORMAT_VERSION}")
    files = {_name(name): StoredFile(int(size), str(digest)) for name, (size, digest) in raw["files"].items()}
    return Contents(str(raw["created_at"]), str(raw["code_version"]), files)


def _name(name: str) -> str:
    """Refuse a name that leaves the directory of the backup, or of the part that it is put back to."""
    if name.startswith("/") or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"the name {name!r} leaves the backup")
    return name


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
