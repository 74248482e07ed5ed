"""Where a deployment keeps its parts, and which of their files belong into a backup."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import fsspec

from rewardloop.formats.store import PRUNED
from rewardloop.formats.storing import evaluated, report_shelf
from rewardloop_local.backup.errors import BackupError

PartName: TypeAlias = Literal["models", "ledger", "work", "spool"]

_VERSION = re.compile(r"([^/]+/\d+)/.+")
_MANIFEST = "manifest.json"
# Other names that begin with a point are those of locks, caches and files that are being written.
_KEPT = {PRUNED, evaluated.FOLDER, report_shelf.FOLDER}
# Locks, and the ledger's index of its segments, which is made again. Pools are copied by SQLite itself.
_LEFT_OUT = re.compile(r"leader\.lock|segments\.json|lock|.*\.sqlite(-journal|-wal|-shm)?|.*\.writing(-\d+)?")


@dataclass(frozen=True, slots=True)
class Place:
    """The directory or fsspec URL of a part, and the part's name in a backup."""

    part: PartName
    url: str

    @property
    def is_local(self) -> bool:
        """Whether it is a directory of this machine."""
        return isinstance(self._fs()[0], fsspec.implementations.local.LocalFileSystem)

    @property
    def path(self) -> Path:
        """The directory, if it is one of this machine."""
        return Path(self._fs()[1])

    def files(self) -> dict[str, int]:
        """Return name and bytes of every file that belongs into a backup, a version's manifest after its other files.

        Files that are being written, locks, caches, and versions without a manifest are left out.
        """
        fs, root = self._fs()
        fs.invalidate_cache()
        found = {
            str(path).removeprefix(f"{root}/"): int(about["size"] or 0)
            for path, about in fs.find(root, detail=True).items()
            if about["type"] == "file"
        }
        names = [name for name in found if _belongs(name)]
        if self.part == "models":
            whole = {name.removesuffix(f"/{_MANIFEST}") for name in names if name.endswith(f"/{_MANIFEST}")}
            names = [name for name in names if (version := version_of(name)) is None or version in whole]
        return {name: found[name] for name in sorted(names, key=lambda name: (name.endswith(_MANIFEST), name))}

    def is_unchanging(self, name: str) -> bool:
        """Whether a file of this name always has the same content: a file of a version or a segment of the ledger."""
        return version_of(name) is not None if self.part == "models" else name.endswith(".parquet")

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """Open a file for reading; the second value is its size. Raises FileNotFoundError if it was deleted."""
        fs, root = self._fs()
        path = f"{root}/{name}"
        with fs.open(path, "rb") as file:
            yield file, int(fs.size(path) or 0)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file for writing."""
        fs, root = self._fs()
        path = f"{root}/{name}"
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with fs.open(path, "wb") as file:
            yield file

    def is_empty(self) -> bool:
        """Whether no file is there, whatever it is."""
        fs, root = self._fs()
        fs.invalidate_cache()
        return not fs.find(root)

    def move_aside(self) -> str:
        """Give a local directory another name, and return it. Raises BackupError if it is not local."""
        if not self.is_local:
            raise BackupError(f"{self.url} is not empty: delete what is there, or name another place")
        aside = self.path.with_name(f"{self.path.name}.before-{time.strftime('%Y%m%dT%H%M%S')}")
        try:
            os.rename(self.path, aside)
        except OSError:  # the root of a volume has no other name; its content has
            aside.mkdir(mode=0o700)
            for each in self.path.iterdir():
                shutil.move(each, aside)
        return str(aside)

    def _fs(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.url)
        return fs, str(root).rstrip("/")


def _belongs(name: str) -> bool:
    parts = name.split("/")
    is_hidden = any(part.startswith(".") and part not in _KEPT for part in parts)
    return not is_hidden and _LEFT_OUT.fullmatch(parts[-1]) is None


def version_of(name: str) -> str | None:
    """Return the version that a file of the store belongs to, such as "reward/3"; None if it belongs to none."""
    found = _VERSION.fullmatch(name)
    return found[1] if found else None
