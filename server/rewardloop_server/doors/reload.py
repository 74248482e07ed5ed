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
    """A file of the door cannot be used; the text says which and why, and never what secret is in it."""


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Changes when a file is written, replaced, or another one is linked to; None for one that is not there."""
    return tuple(_of_one(path) for path in paths)


async def reload_when_changed(
    what: ReloadedFile,
    paths: Sequence[Path],
    take: Callable[[], None],
    metrics: DoorMetrics,
    every_s: float,
    seen: Fingerprint,
) -> None:
    """Call ``take`` in a thread whenever ``paths`` differ from ``seen``, which is what was taken first.

    A file that ``take`` refuses with BadFile is logged and counted, and what was taken before stays.
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
