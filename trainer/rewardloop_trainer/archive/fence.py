"""Keeps a leader that was overtaken from writing.

The lock in Redis says who should write. But a process that was stopped for longer than the lock lives still believes
that it leads when it wakes up. Therefore the archive itself names the epoch of the newest leader, in the file
``leader``. A new leader writes its epoch there before anything else. A trainer makes something visible (a segment of
the ledger, its state, a version in the store) only while the file names its own epoch.

On a local disk a file lock makes the check and the rename one step. An object store has no such lock, so an overtaken
leader may finish a write there that it began before. Segments of different leaders have different names there: such a
write replaces no segment, and readers drop the rows that it repeats.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

_FILE = "leader"
_LOCK = "leader.lock"


class Fenced(Exception):
    """Raised when a trainer that another one has overtaken is about to write."""


class Fence:
    """Compares this process's epoch with the newest one that the archive names.

    Attributes:
        epoch: The epoch of this process; 0 until `advance`.
    """

    def __init__(self, archive: str | Path) -> None:
        """``archive`` is the ledger's directory or fsspec URL."""
        self._fs, root = fsspec.core.url_to_fs(str(archive))
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self.epoch = 0

    @property
    def suffix(self) -> str:
        """The ending of this leader's segment names in an object store; empty on a local disk, which has the lock."""
        return "" if self._is_local else f".e{self.epoch}"

    def read(self) -> int:
        """Return the newest leader's epoch, or 0 before the first leader. Raises OSError."""
        self._fs.invalidate_cache()
        try:
            return int(self._fs.cat_file(f"{self._root}/{_FILE}"))
        except FileNotFoundError:
            return 0

    def advance(self, epoch: int) -> None:
        """Name ``epoch`` as this process's and the newest one. Raises `Fenced` if a later one is named already."""
        self._fs.makedirs(self._root, exist_ok=True)
        with self._locked():
            newest = self.read()
            if newest > epoch:
                raise Fenced(f"epoch {epoch} is over: a trainer of epoch {newest} leads")
            self.epoch = epoch
            if not self._is_local:
                self._fs.pipe_file(f"{self._root}/{_FILE}", str(epoch).encode())
                return
            temporary = Path(self._root) / f".{_FILE}.writing"
            with temporary.open("w") as file:
                file.write(str(epoch))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, Path(self._root) / _FILE)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block make something visible. Raises `Fenced` before the block if another trainer leads."""
        with self._locked():
            self.check()
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep every trainer from making anything visible during the block. An object store has no lock for that."""
        with self._locked():
            yield

    def check(self) -> None:
        """Raise `Fenced` if another trainer leads."""
        if (newest := self.read()) != self.epoch:
            raise Fenced(f"epoch {self.epoch} is over: a trainer of epoch {newest} leads")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._is_local:
            yield
            return
        descriptor = os.open(Path(self._root) / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
