"""Gives the memory of large messages back to the system.

gRPC receives a message in small pieces. glibc keeps their memory when they are freed, and the copy that is made of them
goes elsewhere, so that many large messages at once would take their bytes twice for as long as they are worked on.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

_LARGE_BYTES = 256 * 1024
# A trim walks through all that is free, which takes some milliseconds.
_TRIM_EVERY_BYTES = 32 * 2**20


def trim() -> None:
    """Let the C library give back what is free. Does nothing if it is not glibc."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


class FreedMemory:
    """Counts the bytes of large messages, and trims in a thread whenever many have come.

    Args:
        give_back: Gives free memory back.
    """

    def __init__(self, give_back: Callable[[], None] = trim) -> None:
        self._give_back = give_back
        self._came = 0
        self._trimming: threading.Thread | None = None

    def came(self, size: int) -> None:
        """Note that a message of ``size`` bytes has come, and that its pieces are free."""
        if size < _LARGE_BYTES:
            return
        self._came += size
        if self._came >= _TRIM_EVERY_BYTES and (self._trimming is None or not self._trimming.is_alive()):
            self._came = 0
            self._trimming = threading.Thread(target=self._give_back, name="trim", daemon=True)
            self._trimming.start()
