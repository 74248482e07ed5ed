"""The two files an import keeps beside its source: how far it got, and which rows were rejected."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rewardloop_data.rows import Json
from rewardloop_data.source_file import SourceFile


@dataclass(frozen=True, slots=True)
class Progress:
    """What has been acknowledged. ``lines_done``: the last line all of whose rows up to it are settled.

    ``rows``: rows settled. ``recorded``, ``duplicates``: signals. ``rejected``: rows. ``rejected_bytes``: length
    of the side file of rejected rows. The rest says what the count is of.
    """

    head_sha256: str
    size: int
    server: str
    lines_done: int = 0
    rows: int = 0
    recorded: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejected_bytes: int = 0

    def same_import(self, other: Progress) -> bool:
        return (self.head_sha256, self.size, self.server) == (other.head_sha256, other.size, other.server)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is no signal, or that the server refused."""

    line: int
    reason: str
    row: Json


class SideFiles:
    """``<name>.rewardloop-progress.json`` and ``<name>.rejected.jsonl`` in ``folder``.

    Away from the source, where files of one name may meet, the name is followed by 8 digits of its hash.
    """

    def __init__(self, source: SourceFile, folder: Path) -> None:
        beside = folder.resolve() == source.path.parent.resolve()
        name = source.path.name if beside else f"{source.path.name}.{source.head_sha256[:8]}"
        self.progress_path = folder / f"{name}.rewardloop-progress.json"
        self.rejected_path = folder / f"{name}.rejected.jsonl"

    def begin(self, fresh: Progress, *, restart: bool) -> Progress:
        """Where to go on: the kept progress of the same import, else ``fresh``. Raises OSError."""
        progress = fresh
        if not restart:
            kept = self._read()
            if kept is not None and kept.same_import(fresh):
                progress = kept
        if progress.rejected_bytes == 0:
            self.rejected_path.unlink(missing_ok=True)
        else:
            with self.rejected_path.open("ab") as file:
                # Rejections of a batch whose end was not written down come again.
                file.truncate(min(progress.rejected_bytes, file.tell()))
        self._write(progress)
        return progress

    def advance(self, progress: Progress, rejections: Sequence[Rejection]) -> Progress:
        """Write down settled rows: rejections first, so that progress never claims what is not kept."""
        if rejections:
            keep_aside(self.rejected_path, rejections)
            progress = replace(progress, rejected_bytes=self.rejected_path.stat().st_size)
        self._write(progress)
        return progress

    def finish(self) -> None:
        """Nothing is left to resume: importing the file again sends it again."""
        self.progress_path.unlink(missing_ok=True)

    def _read(self) -> Progress | None:
        try:
            return Progress(**json.loads(self.progress_path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # of another version, or edited: as good as none
            return None

    def _write(self, progress: Progress) -> None:
        temporary = self.progress_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(progress)))
        os.replace(temporary, self.progress_path)


def keep_aside(path: Path, rejections: Sequence[Rejection]) -> None:
    """Append rejected rows to ``path``, one JSON object a line. Raises OSError."""
    with path.open("ab") as file:
        for rejection in rejections:
            file.write(json.dumps(asdict(rejection), default=str).encode("utf-8") + b"\n")


def writable_folder(preferred: Path) -> Path | None:
    """``preferred``, or None when nothing may be written there.

    A folder without any write permission is respected even by root, whom the system would not stop.
    """
    if not preferred.stat().st_mode & 0o222:
        return None
    return preferred if os.access(preferred, os.W_OK) else None
