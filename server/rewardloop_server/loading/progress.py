"""Logs how far the fetching and hashing of a large version is."""

from __future__ import annotations

import threading
import time

import structlog

log = structlog.get_logger()

LARGE_BYTES = 10**9
_EVERY_S = 10.0


class LoadingLog:
    """Logs an event every 10 seconds and at the end. It may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due_s: dict[tuple[str, int], float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Log that ``done`` of ``total`` bytes are done. A version below `LARGE_BYTES` is passed over."""
        if total < LARGE_BYTES:
            return
        now = time.monotonic()
        with self._lock:
            due_s = self._due_s.setdefault((what, total), now + _EVERY_S)
            if done < total and now < due_s:
                return
            if done < total:
                self._due_s[what, total] = now + _EVERY_S
            else:
                del self._due_s[what, total]
        log.info("large version", step=what, done_gb=round(done / 1e9, 1), total_gb=round(total / 1e9, 1))
