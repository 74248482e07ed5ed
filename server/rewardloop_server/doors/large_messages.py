"""Takes large messages one at a time, so that small calls are answered between them.

The event loop parses and checks a message in one piece, which takes several milliseconds for one of many megabytes. A
call passes through the loop a handful of times until it is answered, and waits each time for all the pieces that are
due. So only one large message at a time is parsed and checked, and after it the loop is left to others for as long as
that took.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rewardloop_server.calls.message_size import LARGE_BYTES

# gRPC has copied a message twice before its turn, which took the event loop about this long.
_RECEIVE_S_PER_BYTE = 1e-9


class LargeMessages:
    """Gives turns to the peers that wait, one message of each in rotation. One event loop uses it."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, peer: str, size: int) -> AsyncIterator[None]:
        """Wait for a turn, if the message of ``size`` bytes from ``peer`` is large.

        The turn lasts until the task, and one that it starts, wait for something after the block, and then for as long
        as it took until there.
        """
        if size < LARGE_BYTES:
            yield
            return
        await self._wait(peer)
        began = time.monotonic()
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._rest, began, size)  # after what is due now, and what that starts

    def _rest(self, began: float, size: int) -> None:
        """Let the others have the loop."""
        pause_s = time.monotonic() - began + size * _RECEIVE_S_PER_BYTE
        asyncio.get_running_loop().call_later(pause_s, self._next)

    async def _wait(self, peer: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had come in the meantime
                self._next()
            raise

    def _next(self) -> None:
        """Give the turn to the peer that has waited longest for one, or to nobody."""
        while self._waiting:
            peer, turns = next(iter(self._waiting.items()))
            del self._waiting[peer]
            turn = turns.popleft()
            if turns:
                self._waiting[peer] = turns  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
