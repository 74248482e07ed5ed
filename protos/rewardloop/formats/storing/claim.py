"""Gives each version number of an object store to one of the writers that want it.

If the store can create a file only where none is (S3: ``If-None-Match: *``), all writers use the name ``claim``, and
the first one has the number. Else each writer puts ``claim-<token>`` beside it. Either way a writer then lists the
claims, and gives the number up if it finds another's. Of two writers the one that lists later finds both, so that at
most one keeps the number; both may lose it, and take others. That needs a store that lists what was just written, as
S3, GCS and Azure do.

A claim stays beside the version. A number whose writer died is never used again.
"""

from __future__ import annotations

import inspect
import uuid
from typing import Any

CLAIM = "claim"


class NumberClaim:
    """One writer's claim of one number.

    Args:
        filesystem: The store's fsspec file system.
        target: The directory of the version.
    """

    def __init__(self, filesystem: Any, target: str) -> None:
        self._fs = filesystem
        self._target = target
        self._token = uuid.uuid4().hex
        self._is_exclusive = _can_create(filesystem)

    def take(self) -> bool:
        """Claim the number. Returns False if another writer has it."""
        if self._is_exclusive:
            try:
                self._fs.pipe_file(self._path, self._token.encode(), mode="create")
            except Exception:  # each file system has exceptions of its own; what is there afterwards decides
                self._fs.invalidate_cache()
                if not self._fs.exists(self._path):
                    self._is_exclusive = False  # the store does not know the condition
                elif not self.is_held():
                    return False
        if not self._is_exclusive:
            self._fs.pipe_file(self._path, self._token.encode())
        self._fs.invalidate_cache()
        names = [str(entry).rsplit("/", 1)[-1] for entry in self._fs.ls(self._target, detail=False)]
        is_alone = [name for name in names if name.startswith(CLAIM)] == [self._path.rsplit("/", 1)[-1]]
        if not is_alone and self.is_held():
            self._fs.rm(self._path)
        return is_alone and self.is_held()

    def is_held(self) -> bool:
        """Return whether the claim is still this writer's. It is not if the store ignored the condition."""
        self._fs.invalidate_cache()
        return bool(self._fs.cat_file(self._path) == self._token.encode())

    def abandon(self) -> None:
        """Remove what this writer has put under the number, the claim included."""
        if self.is_held():
            self._fs.rm(self._target, recursive=True)

    @property
    def _path(self) -> str:
        return f"{self._target}/{CLAIM}" if self._is_exclusive else f"{self._target}/{CLAIM}-{self._token}"


def _can_create(filesystem: Any) -> bool:
    """Return whether the file system's own way to write a file takes the mode "create".

    fsspec's general way looks whether the file exists and then writes it, so that two writers may both succeed.
    """
    own = getattr(filesystem, "_pipe_file", None) or _own_pipe_file(filesystem)
    return own is not None and "mode" in inspect.signature(own).parameters


def _own_pipe_file(filesystem: Any) -> Any:
    from fsspec.spec import AbstractFileSystem

    own = type(filesystem).pipe_file
    return None if own is AbstractFileSystem.pipe_file else own
