"""Says every few seconds how far a long copy is."""

from __future__ import annotations

import time
from collections.abc import Callable

_EVERY_S = 2.0


class Progress:
    """Counts bytes of one step after another, and says how far the present one is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._step = ""
        self._total = 0
        self._done = 0
        self._said = 0.0

    def begin(self, step: str, total: int) -> None:
        """Begin a step that is to move so many bytes."""
        self._step, self._total, self._done = step, total, 0
        self._said = time.monotonic()

    def moved(self, count: int) -> None:
        """Count bytes."""
        self._done += count
        if time.monotonic() - self._said >= _EVERY_S:
            self._said = time.monotonic()
            self._say(f"{self._step}: {self._done / 2**20:,.0f} of {self._total / 2**20:,.0f} MiB")
