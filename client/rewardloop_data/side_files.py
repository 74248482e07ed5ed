"""The two files that an import keeps beside its source: its progress, and the rejected rows."""

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
    """How much of an import the server has acknowledged.

    Attributes:
        head_sha256: The sha256 of the first 64 KiB of the source.
        size: Bytes of the source.
        server: Address that the signals are sent to.
        import_id: The import's id.
        lines_done: Every row up to this line is settled: recorded or rejected.
        rows: Settled rows.
        recorded: Signals that were recorded.
        duplicates: Signals that had been recorded before.
        relabelled: Those of them that had been recorded with other labels, such as another source, and keep them.
        rejected: Rejected rows.
        rejected_bytes: Length of the file of rejected rows.
    """

    head_sha256: str
    size: int
    server: str
    import_id: str = ""
    lines_done: int = 0
    rows: int = 0
    recorded: int = 0
    duplicates: int = 0
    relabelled: int = 0
    rejected: int = 0
    rejected_bytes: int = 0

    def same_import(self, other: Progress) -> bool:
        """Return whether both are the progress of the same file to the same server."""
        mine, its = ((each.head_sha256, each.size, each.server, each.import_id) for each in (self, other))
        return mine == its


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is no signal, or that the server has refused."""

    line: int
    reason: str
    row: Json


class SideFiles:
    """``<name>.rewardloop-progress.json`` and ``<name>.rejected.jsonl`` in ``folder``.

    If ``folder`` is not that of the source, 8 digits of the source's hash follow the name, because files of the same
    name may meet there.
    """

    def __init__(self, source: SourceFile, folder: Path) -> None:
        beside = not source.named and folder.resolve() == source.path.parent.resolve()
        name = source.name if beside else f"{source.name}.{source.head_sha256[:8]}"
        self.progress_path = folder / f"{name}.rewardloop-progress.json"
        self.rejected_path = folder / f"{name}.rejected.jsonl"

    def begin(self, fresh: Progress, *, restart: bool) -> Progress:
        """Return the kept progress of the same import, or ``fresh`` if there is none. Raises OSError."""
        progress = fresh
        if not restart:
            kept = self._read()
            if kept is not None and kept.same_import(fresh):
                progress = kept
        if progress.rejected_bytes == 0:
            self.rejected_path.unlink(missing_ok=True)
        else:
            with self.rejected_path.open("ab") as file:
                # A batch that was not written down completely is sent again, and its rejections are written again.
                file.truncate(min(progress.rejected_bytes, file.tell()))
        self._write(progress)
        return progress

    def advance(self, progress: Progress, rejections: Sequence[Rejection]) -> Progress:
        """Write settled rows: rejections first, so that the progress never counts a row that is not kept."""
        if rejections:
            keep_aside(self.rejected_path, rejections)
            progress = replace(progress, rejected_bytes=self.rejected_path.stat().st_size)
        self._write(progress)
        return progress

    def finish(self) -> None:
        """Remove the progress after the end of the import. Importing the file again then sends it again."""
        self.progress_path.unlink(missing_ok=True)

    def _read(self) -> Progress | None:
        try:
            return Progress(**json.loads(self.progress_path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # written by another version, or edited: start over
            return None

    def _write(self, progress: Progress) -> None:
        temporary = self.progress_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(progress)))
        os.replace(temporary, self.progress_path)


def keep_aside(path: Path, rejections: Sequence[Rejection]) -> None:
    """Append rejected rows to ``path``, one JSON object on each line. Raises OSError."""
    with path.open("ab") as file:
        for rejection in rejections:
            file.write(json.dumps(asdict(rejection), default=str).encode("utf-8") + b"\n")


def writable_folder(preferred: Path) -> Path | None:
    """Return ``preferred``, or None if it cannot be written to.

    A folder without any write permission counts as such for root, too, although the system would let root write.
    """
    if not preferred.stat().st_mode & 0o222:
        return None
    return preferred if os.access(preferred, os.W_OK) else None
