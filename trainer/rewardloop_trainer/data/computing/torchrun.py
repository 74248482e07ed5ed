"""What torchrun says to the processes that it starts. This module imports no torch."""

from __future__ import annotations

import os


def started_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_started_first() -> bool:
    """Whether this is the first process that torchrun started, or the only one without it."""
    return os.environ.get("RANK", "0") == "0"
