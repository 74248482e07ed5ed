"""Directories that appear complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a directory that appears under its name only when it is complete."""
    partial = target.with_name(f".writing-{target.name}")
    for stale in (partial, target):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(target)
