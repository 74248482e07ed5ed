"""Files that a running process reads again when they change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import structlog

from rewardloop_server.calls.vocabulary import ReloadedFile
from rewardloop_server.observe.door_metrics import DoorMetrics

log = structlog.get_logger()

Fingerprint: TypeAlias = tuple[tuple[int, int, int] | None, ...]


class BadFile(Exception):
    """Raised when a file of the door cannot be used. The text says which file and why, and shows no secret of it."""


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Return what changes when a file is written, replaced or linked to another one. A missing file has None."""
    return tuple(_of_one(path) for path in paths)


async def reload_when_changed(
    what: ReloadedFile,
    paths: Sequence[Path],
    take: Callable[[], None],
    metrics: DoorMetrics,
    every_s: float,
    seen: Fingerprint,
) -> None:
    """Call ``take`` in a thread whenever the files change, until cancelled.

    Args:
        what: The files' name in logs and metrics.
        paths: The files.
        take: Reads the files and puts their content in force. If it raises BadFile, that is logged and counted, and
            the content that was taken before stays in force.
        metrics: Where reloads are counted.
        every_s: Pause between two looks at the files, in seconds.
        seen: The fingerprint of the files as they were taken first.
    """
    while True:
        await asyncio.sleep(every_s)
        now = await asyncio.to_thread(fingerprint, paths)
        if now == seen:
            continue
        seen = now
        try:
            await asyncio.to_thread(take)
        except BadFile as error:
            metrics.reloads_total.labels(file=what, outcome="refused").inc()
            log.error("new file refused, the old one stays", file=what, error=str(error))
        else:
            metrics.reloads_total.labels(file=what, outcome="taken").inc()
            log.info("new file taken", file=what, paths=[str(path) for path in paths])


def _of_one(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
