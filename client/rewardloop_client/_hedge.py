"""When a slow call is sent a second time, to another replica. gRPC's C core, and so Python, has no hedging.

No I/O here: the transports ask, and carry it out.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

_WINDOW = 512
_FIRST_ESTIMATE = 50
_ESTIMATE_EVERY = 32
# What may be saved up: after a long calm, an outage must not double every call.
_MOST_SAVED = 10.0


@dataclass(frozen=True, slots=True)
class Hedging:
    """A `score` without an answer for long is asked again elsewhere; the first answer wins, the other is cancelled.

    ``after_s``: how long; None: the time in which 95% of this client's last 512 calls ended, known from the 50th on.
    ``max_extra``: most second calls as a share of all calls; it holds at every moment.
    """

    after_s: float | None = None
    max_extra: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.max_extra <= 1:
            raise ValueError("max_extra is above 0 and at most 1")
        if self.after_s is not None and not 0 < self.after_s < math.inf:
            raise ValueError("after_s is above 0 and finite")


class Hedger:
    """The budget and the delay of one client. Safe to share between threads."""

    def __init__(self, hedging: Hedging) -> None:
        self._hedging = hedging
        self._lock = threading.Lock()
        self._saved = 0.0
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._new = 0
        self._estimate: float | None = None

    def begin(self) -> float | None:
        """Count one call; returns the seconds after which it may be sent again, None: never."""
        with self._lock:
            self._saved = min(_MOST_SAVED, self._saved + self._hedging.max_extra)
            return self._hedging.after_s if self._hedging.after_s is not None else self._estimate

    def spend(self) -> bool:
        """Whether the budget has room for a second call now; takes it."""
        with self._lock:
            # A share such as 0.05 has no exact sum: 20 of them fall just short of 1.
            if self._saved < 1.0 - 1e-9:
                return False
            self._saved -= 1.0
            return True

    def took(self, seconds: float) -> None:
        """The first of a call's two requests ended, or was cancelled, after so long."""
        with self._lock:
            self._seconds.append(seconds)
            self._new += 1
            enough = len(self._seconds) >= _FIRST_ESTIMATE
            if enough and (self._estimate is None or self._new >= _ESTIMATE_EVERY):
                self._new = 0
                ordered = sorted(self._seconds)
                self._estimate = ordered[math.ceil(0.95 * len(ordered)) - 1]
