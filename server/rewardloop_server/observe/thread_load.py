"""thread_load: how much of its time the event loop's thread computes."""

from __future__ import annotations

import time

# A shorter window would be filled by one large message.
_WINDOW_S = 0.05


class ThreadLoad:
    """The share of time for which one thread held a core lately. Only that thread may use it."""

    def __init__(self) -> None:
        self._at, self._used_s = time.monotonic(), time.thread_time()
        self._share = 0.0

    def share(self) -> float:
        """Return the share, 0 to 1, between the latest two calls that are at least 50 ms apart."""
        at = time.monotonic()
        if (passed_s := at - self._at) >= _WINDOW_S:
            used_s = time.thread_time()
            self._share = (used_s - self._used_s) / passed_s
            self._at, self._used_s = at, used_s
        return self._share
