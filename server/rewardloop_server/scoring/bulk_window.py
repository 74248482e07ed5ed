"""Bounds how much of one ScoreBatch or ScoreStream is worked on at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class BulkWindow:
    """The groups of one call that are being worked on.

    They are enough to keep the engine busy, and so few that a call of any size fills neither the queue nor memory. One
    group may always be in, whatever its size. One task enters groups; any task may let them leave.

    Args:
        max_tokens: About how many tokens the groups in it have at most.
        max_groups: Most groups in it.
    """

    def __init__(self, *, max_tokens: int, max_groups: int) -> None:
        self._max_tokens = max_tokens
        self._max_groups = max_groups
        self._tokens = 0
        self._groups = 0
        self._left = asyncio.Event()

    async def enter(self, tokens: int, has_room: Callable[[], bool]) -> bool:
        """Wait until a group may enter, and let it in. Returns whether other groups are in.

        It may enter if no others are in, or if its tokens fit and ``has_room()`` returns True.
        """
        while self._groups and (
            self._groups >= self._max_groups or self._tokens + tokens > self._max_tokens or not has_room()
        ):
            self._left.clear()
            await self._left.wait()
        self._tokens += tokens
        self._groups += 1
        return self._groups > 1

    def leave(self, tokens: int) -> None:
        """Let a group of ``tokens`` leave."""
        self._tokens -= tokens
        self._groups -= 1
        self._left.set()
