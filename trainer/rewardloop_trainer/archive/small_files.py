"""Small files beside the ledger's segments, each replaced as a whole: counts, its id, and the register of erasures."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


class SmallFiles:
    """Files below ``root`` in a file system of fsspec.

    Args:
        fs: The file system.
        root: The ledger's place in it.
        is_local: Whether it is a disk of this machine.
        held: A block in which a file may become visible.
    """

    def __init__(self, fs: Any, root: str, is_local: bool, held: Callable[[], AbstractContextManager[None]]) -> None:
        self._fs = fs
        self._root = root
        self._is_local = is_local
        self._held = held

    @property
    def place(self) -> str:
        """Where the ledger is: a directory, or a path in an object store."""
        return self._root

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none. Raises OSError."""
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Return the names of the JSON files in a folder, with the folder. Raises OSError."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        names = sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return [f"{folder}/{name}" for name in names if name.endswith(".json") and not name.startswith(".")]

    def write(self, name: str, data: bytes, *, is_private: bool = False) -> None:
        """Replace a file, which is on disk when this returns; a private one is for its owner alone.

        Raises `Fenced` and OSError.
        """
        target = f"{self._root}/{name}"
        folder = target.rpartition("/")[0]
        self._fs.makedirs(folder, exist_ok=True)
        with self._held():
            if not self._is_local:
                self._fs.pipe_file(target, data)
                return
            temporary = Path(folder) / f".{target.rpartition('/')[2]}.writing"
            descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600 if is_private else 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            directory = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
