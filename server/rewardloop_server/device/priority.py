"""Lowers the priority of threads that compute, so that the thread which answers requests gets a core at once.

Otherwise a request would wait for the scheduler's next turn, which takes some 4 ms on Linux.
"""

from __future__ import annotations

import os
import sys
import threading


def step_back(nice: int) -> None:
    """Raise the niceness of the calling thread, and of threads that it starts from now on, by ``nice`` (0 to 19).

    This is done on Linux alone, where each thread has its own niceness. Elsewhere it would be the whole process's.
    """
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
