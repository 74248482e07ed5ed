"""The memory that the whole demo takes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psutil


class Memory:
    """Watches the resident memory of this process and of all that it started.

    Attributes:
        peak_bytes: The largest sum so far.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0

    async def watch(self, every_s: float = 0.5) -> None:
        """Look every ``every_s`` seconds until cancelled."""
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it ended after it was listed
                    total += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, total)
            await asyncio.sleep(every_s)
