"""Decides when a slow call is sent to a second replica, which gRPC for Python cannot do itself.

This module does no I/O. The transports ask it, and send the calls.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

_WINDOW = 512
_FIRST_ESTIMATE = 50
_ESTIMATE_EVERY = 32
# Bounds the savings: after a long calm, an outage must not double every call.
_MOST_SAVED = 10.0


@dataclass(frozen=True, slots=True)
class Hedging:
    """Sends a `score` that takes long to a second replica. The first answer counts, and the other call is cancelled.

    Attributes:
        after_s: Seconds after which the second call is sent. None is the time within which 95% of this client's last
            512 calls ended, which is known from the 50th call on.
        max_extra: Most second calls as a share of all calls. The bound holds at every moment.
    """

    after_s: float | None = None
    max_extra: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.max_extra <= 1:
            raise ValueError("max_extra is above 0 and at most 1")
        if self.after_s is not None and not 0 < self.after_s < math.inf:
            raise ValueError("after_s is above 0 and finite")


class Hedger:
    """Keeps one client's budget of second calls, and the delay before one. Threads may share it."""

    def __init__(self, hedging: Hedging) -> None:
        self._hedging = hedging
        self._lock = threading.Lock()
        self._saved = 0.0
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._new = 0
        self._estimate: float | None = None

    def begin(self) -> float | None:
        """Count one call. Returns the seconds after which it may be sent again, or None if it may not."""
        with self._lock:
            self._saved = min(_MOST_SAVED, self._saved + self._hedging.max_extra)
            return self._hedging.after_s if self._hedging.after_s is not None else self._estimate

    def spend(self) -> bool:
        """Take one second call from the budget. Returns False if there is none."""
        with self._lock:
            # A share such as 0.05 has no exact binary value, and 20 of them add up to just below 1.
            if self._saved < 1.0 - 1e-9:
                return False
            self._saved -= 1.0
            return True

    def took(self, seconds: float) -> None:
        """Note how many seconds the first of a call's requests took until it ended or was cancelled."""
        with self._lock:
            self._seconds.append(seconds)
            self._new += 1
            enough = len(self._seconds) >= _FIRST_ESTIMATE
            if enough and (self._estimate is None or self._new >= _ESTIMATE_EVERY):
                self._new = 0
                ordered = sorted(self._seconds)
                self._estimate = ordered[math.ceil(0.95 * len(ordered)) - 1]
