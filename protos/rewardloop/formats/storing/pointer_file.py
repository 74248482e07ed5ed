"""The copy of a model's pointer in the store, ``<store>/<model>/pointer.json``.

It outlives Redis. On a local disk a lock makes the comparison and the rename one step. In an object store a writer
reads, compares and writes: a writer that is overtaken in between may put an earlier pointer there, which whoever looks
next repairs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewardloop.formats.storing.active import Active, CorruptPointer

POINTER = "pointer.json"
_LOCK = ".pointer.lock"
_WRITING = ".pointer.writing"


class PointerFileError(Exception):
    """Raised when the copy cannot be read or written."""


class PointerFile:
    """Reads and replaces the copies of one store.

    Args:
        filesystem: The store's fsspec file system.
        root: The store's path in it.
        is_local: It is a local disk.
    """

    def __init__(self, filesystem: Any, root: str, is_local: bool) -> None:
        self._fs = filesystem
        self._root = root
        self._is_local = is_local
        self._read: dict[str, tuple[float, Active | None]] = {}

    def read(self, model: str, max_age_s: float = 0.0) -> Active | None:
        """Return the copy, or None if there is none. Raises PointerFileError.

        What was read at most ``max_age_s`` seconds ago is returned again.
        """
        read_at, known = self._read.get(model, (0.0, None))
        if read_at and time.monotonic() - read_at < max_age_s:
            return known
        try:
            found = Active.from_json(self._fs.cat_file(self._path(model)))
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except CorruptPointer as error:
            raise PointerFileError(f"{self._path(model)}: {error}") from error
        except Exception as error:  # each file system has exceptions of its own
            raise PointerFileError(f"{self._path(model)} cannot be read: {error}") from error
        self._read[model] = (time.monotonic(), found)
        return found

    def keep(self, model: str, active: Active) -> Active:
        """Write the pointer unless the copy is a later one, and return the copy. Raises PointerFileError.

        A copy that cannot be read is replaced.
        """
        try:
            with self._locked(model):
                try:
                    found = self.read(model)
                except PointerFileError as error:
                    if not isinstance(error.__cause__, CorruptPointer):
                        raise
                    found = None
                if found is not None and found.is_as_late_as(active):
                    return found
                self._write(model, active.to_json().encode())
        except PointerFileError:
            raise
        except Exception as error:  # as above
            raise PointerFileError(f"{self._path(model)} cannot be written: {error}") from error
        self._read[model] = (time.monotonic(), active)
        return active

    def _write(self, model: str, data: bytes) -> None:
        if not self._is_local:
            self._fs.pipe_file(self._path(model), data)
            return
        path = Path(self._path(model))
        temporary = path.with_name(_WRITING)  # one name, because the lock lets one process write
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        if not self._is_local:
            yield
            return
        directory = Path(self._root) / model
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, model: str) -> str:
        return f"{self._root}/{model}/{POINTER}"
