"""Ends the process if its drain does not, whatever its threads do."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

import structlog

log = structlog.get_logger()

# What closing takes beyond the time that requests in flight have.
CLOSING_S = 5.0


def end_after(seconds: float) -> None:
    """End the process with status 1 after so many seconds, unless it has ended by then."""
    last = threading.Timer(seconds, _give_up, (seconds,))
    last.daemon = True
    last.start()


def end_now(status: int) -> NoReturn:
    """End the process without waiting for its threads, one of which is lost in native code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _give_up(seconds: float) -> None:
    log.critical("the drain does not end, so the process ends at once", seconds=seconds)
    end_now(1)
