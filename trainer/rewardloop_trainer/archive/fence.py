"""Keeps a leader that was overtaken from writing.

The lock in Redis says who should write, but a process that was stopped for longer than the lock lives still believes
that it leads when it wakes up. So the archive itself names the newest leader's epoch, in the file ``leader``: a new
leader writes its own there before anything else, and whatever a trainer makes visible (a segment of the ledger, its
state, a version in the store) it makes visible only while its epoch stands there.

On a local disk a file lock makes look and rename one step. An object store has no such lock: there an overtaken leader
may finish a write that it began before; segments of different leaders have different names there, so that it adds rows
which the readers drop as repeated, and replaces none.
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
    """Another trainer leads: this one may not write."""


class Fence:
    """``archive``: the ledger's directory or fsspec URL. ``epoch``: this process's, 0 until `advance`."""

    def __init__(self, archive: str | Path) -> None:
        self._fs, root = fsspec.core.url_to_fs(str(archive))
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self.epoch = 0

    @property
    def suffix(self) -> str:
        """Of the names of this leader's segments, where nothing else keeps leaders apart."""
        return "" if self._is_local else f".e{self.epoch}"

    def read(self) -> int:
        """The newest leader's epoch; 0 before the first. Raises OSError."""
        self._fs.invalidate_cache()
        try:
            return int(self._fs.cat_file(f"{self._root}/{_FILE}"))
        except FileNotFoundError:
            return 0

    def advance(self, epoch: int) -> None:
        """Name this process's epoch as the newest. Raises Fenced when a later one is named already."""
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
        """The block in which something becomes visible. Raises Fenced before it."""
        with self._locked():
            self.check()
            yield

    def check(self) -> None:
        """Raises Fenced when another trainer leads."""
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
