"""Remembers the footers of the ledger's segments in one file, so that a start reads one file instead of thousands.

The file is a cache: a segment that it does not name, or names with another size, is opened as if there were no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

FILE = "segments.json"
_FORMAT_VERSION = 1
_BEHIND = 64  # footers that a start reads at most, besides the file


@dataclass(frozen=True, slots=True)
class Footer:
    """What a segment's footer says: its rows, and the names of the segments that it replaces. ``size`` is in bytes."""

    size: int
    rows: int
    replaces: tuple[str, ...] = ()


class SegmentIndex:
    """The footers that are known, of a ledger at ``root`` in a file system of fsspec."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root
        self._footers = self._read()
        self._written = set(self._footers)

    def find(self, name: str, size: int) -> Footer | None:
        """Return the footer of a segment if it is known and the segment still has this size."""
        footer = self._footers.get(name)
        return footer if footer is not None and footer.size == size else None

    def size(self, name: str) -> int:
        """Return the bytes of a segment whose footer is known."""
        return self._footers[name].size

    def add(self, name: str, footer: Footer) -> None:
        self._footers[name] = footer

    def is_behind(self, names: Collection[str]) -> bool:
        """Whether so many of these segments are missing from the file that it is worth writing."""
        return len((set(self._footers) & set(names)) - self._written) >= _BEHIND

    def write(self, names: Collection[str]) -> None:
        """Write the footers of these segments, as far as they are known. Raises OSError."""
        known = list(self._footers.items())  # a copy: another thread may add to them
        self._footers = {name: footer for name, footer in known if name in names}
        rows = {name: [f.size, f.rows, list(f.replaces)] for name, f in sorted(self._footers.items())}
        data = json.dumps({"format_version": _FORMAT_VERSION, "segments": rows}).encode()
        if self._is_local:
            temporary = f"{self._root}/.{FILE}.writing"
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, f"{self._root}/{FILE}")
        else:
            self._fs.pipe_file(f"{self._root}/{FILE}", data)
        self._written = set(self._footers)

    @property
    def _is_local(self) -> bool:
        return "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def _read(self) -> dict[str, Footer]:
        try:
            raw = json.loads(self._fs.cat_file(f"{self._root}/{FILE}"))
            if raw["format_version"] != _FORMAT_VERSION:
                return {}
            return {
                str(name): Footer(int(size), int(rows), tuple(map(str, replaces)))
                for name, (size, rows, replaces) in raw["segments"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
