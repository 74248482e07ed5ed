"""Records the start of a process, and tries again later if that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

log = structlog.get_logger()

_RETRY_S = 1.0


class StartRecord:
    """Calls a function with the pid of a process that was started, until the function succeeds once.

    A disk that is full must not end the process that was started, and must not hide it from its owner.
    """

    def __init__(self, name: str, record: Callable[[int], None]) -> None:
        self._name = name
        self._record = record
        self._pid: int | None = None
        self._last_try = 0.0

    def started(self, pid: int) -> None:
        """Record the process. A failure is logged."""
        self._pid = pid
        if (error := self._try()) is not None:
            report(log.error, "process not recorded, trying again", process=self._name, pid=pid, error=str(error))

    def retry(self) -> None:
        """Try again if the last process was not recorded, at most once a second."""
        if self._pid is not None and time.monotonic() - self._last_try >= _RETRY_S:
            self._try()

    def _try(self) -> OSError | None:
        pid = self._pid
        if pid is None:
            return None
        self._last_try = time.monotonic()
        try:
            self._record(pid)
        except OSError as error:
            return error
        self._pid = None
        return None


def report(write: Callable[..., Any], event: str, **fields: object) -> None:
    """Log an event. A log that cannot be written, such as one on a full disk, does not end the caller."""
    with suppress(OSError):
        write(event, **fields)
