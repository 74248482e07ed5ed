"""Threads that compute step back before the one that answers: a core that they fill is given up the moment a request
comes, where it would otherwise wait for the scheduler's next turn (some 4 ms on Linux)."""

from __future__ import annotations

import os
import sys
import threading


def step_back(nice: int) -> None:
    """Raise the calling thread's niceness by ``nice``, 0 to 19; threads that it starts from now on have it too.

    On Linux alone, where niceness is a thread's; elsewhere it would be the whole process's, and nothing is done.
    """
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
