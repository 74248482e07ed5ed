"""Keeps the log of a process that runs from filling the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MOST_BYTES = 32 * 2**20


def bound_log(path: Path, most_bytes: int = MOST_BYTES) -> bool:
    """Move the content of a log that has become too long to ``<name>.1``, in the place of what is there.

    The process goes on writing to the same file, which it must have opened for appending. What it writes between the
    copy and the cut is lost.

    Returns:
        Whether the log was too long. Raises OSError, and FileNotFoundError if there is no log.
    """
    if path.stat().st_size <= most_bytes:
        return False
    older = path.with_name(f"{path.name}.1")
    shutil.copyfile(path, older)
    os.truncate(path, 0)
    return True
