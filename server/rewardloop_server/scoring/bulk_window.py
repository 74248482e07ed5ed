"""bulk: how much of one ScoreBatch or ScoreStream is worked on at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class BulkWindow:
    """The groups of one call that have entered and not left: at most ``max_groups``, of about ``max_tokens`` tokens.

    Enough to keep the engine full, so little that a call of any size holds neither the queue nor memory. One group may
    always be in, whatever its size. One task enters; any may leave.
    """

    def __init__(self, *, max_tokens: int, max_groups: int) -> None:
        self._max_tokens = max_tokens
        self._max_groups = max_groups
        self._tokens = 0
        self._groups = 0
        self._left = asyncio.Event()

    async def enter(self, tokens: int, has_room: Callable[[], bool]) -> bool:
        """Wait until a group of ``tokens`` fits and, where others are in, ``has_room()``. True: others are in."""
        while self._groups and (
            self._groups >= self._max_groups or self._tokens + tokens > self._max_tokens or not has_room()
        ):
            self._left.clear()
            await self._left.wait()
        self._tokens += tokens
        self._groups += 1
        return self._groups > 1

    def leave(self, tokens: int) -> None:
        self._tokens -= tokens
        self._groups -= 1
        self._left.set()
