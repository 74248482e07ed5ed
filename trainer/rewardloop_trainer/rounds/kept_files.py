"""Bounds what rounds leave in the work directory: candidates that were refused, rounds that failed, reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

log = structlog.get_logger()

# How many of a model's newest rounds are kept. Refused and failed ones hold weights, reports hold figures.
KEPT = {"refused": 5, "failed": 5, "reports": 50}


def bound_files(work_dir: Path, model: str, ended: int) -> None:
    """Delete files of a model's rounds: of ended ones what only training needs, and of all but the newest the rest.

    What cannot be deleted is logged, and tried again after the next round.

    Args:
        work_dir: The trainer's directory.
        model: The model.
        ended: The number of the round that has ended last.
    """
    old = [path for number, path in _rounds(work_dir / "rounds", model) if number <= ended]
    for folder, count in KEPT.items():
        old += [path for _, path in _rounds(work_dir / folder, model)[:-count]]
    for path in old:
        try:
            shutil.rmtree(path)
        except OSError as error:
            log.warning("files of an ended round are not deleted", path=str(path), reason=str(error))


def _rounds(folder: Path, model: str) -> list[tuple[int, Path]]:
    """Return the directories of a model's rounds in a folder with their numbers, in ascending order."""
    numbered = [(path.name.removeprefix(f"{model}-"), path) for path in folder.glob(f"{model}-*") if path.is_dir()]
    return sorted((int(number), path) for number, path in numbered if number.isdecimal())
