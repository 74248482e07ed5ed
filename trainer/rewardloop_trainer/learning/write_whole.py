"""Writes directories and files that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rewardloop.formats.file_modes import give_default_modes


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a directory that appears under its name only when it is complete and on disk.

    Its files have the modes of newly made ones, whatever mode ``write`` gave them. A directory that is already at
    ``target`` is removed first. If ``write`` raises, nothing is left behind. A killed process leaves a hidden
    directory, which the next call removes.

    Args:
        target: The directory to write.
        write: Fills the directory that it is given.
    """
    partial = target.with_name(f".writing-{target.name}")
    for stale in (partial, target):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        give_default_modes(partial)
        for path in (*partial.rglob("*"), partial):
            _fsync(path)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _fsync(target.parent)


def write_whole_file(target: Path, text: str) -> None:
    """Write a text file that appears under its name only when it is complete and on disk, in place of an earlier one.

    Raises:
        OSError: If it cannot be written; an earlier file stays as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".writing-{target.name}")
    partial.write_text(text, encoding="utf-8")
    _fsync(partial)
    os.replace(partial, target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
