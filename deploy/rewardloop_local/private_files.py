"""Keeps other users of the machine from reading what a deployment writes: prompts, signals, models and logs."""

from __future__ import annotations

import os
from pathlib import Path


def make_private() -> None:
    """Let this process, and those that it starts from now on, make files and directories for their owner alone."""
    os.umask(0o077)


def open_to_others(directory: Path) -> str:
    """Return a warning if other users may enter a directory that was there before; else an empty text."""
    try:
        mode = directory.stat().st_mode & 0o777
    except OSError:  # it is made later, for its owner alone, or the start says what is wrong with it
        return ""
    if not mode & 0o077:
        return ""
    return (
        f"WARNING: other users of this machine may read {directory}, which has mode {mode:04o}: "
        f"'chmod -R go= {directory}' ends that"
    )
