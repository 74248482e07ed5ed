"""link: a front's connection to the engine's process, which is made again whenever it is lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import structlog

from rewardloop_server.calls.errors import NoModel
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.channel.frames import FrameProtocol, Kind
from rewardloop_server.channel.messages import IS_AWAY, IS_STUCK, error_from_bytes, json_from_bytes, scored_from_bytes

log = structlog.get_logger()

_RETRY_S = 0.05
_PATIENCE_S = 60.0
# The engine tells its state ten times a second. After so long a silence it hangs, though its connection stands.
_SILENCE_S = 3.0
_READERS = {Kind.SCORED: scored_from_bytes, Kind.HELD: json_from_bytes}


class _Connection(FrameProtocol):
    def __init__(self, link: EngineLink) -> None:
        super().__init__()
        self._link = link
        self.lost = asyncio.Event()

    def received(self, kind: int, state: int, number: int, payload: bytes) -> None:
        self._link.take(kind, state, number, payload)

    def ended(self) -> None:
        self._link.lose()
        self.lost.set()


class EngineLink:
    """Asks the engine's process, and gives its answers to those who wait. Used from the event loop.

    Args:
        path: The engine's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: _Connection | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._state = 0
        self._heard_at = time.monotonic()
        self._changed = asyncio.Event()
        self._is_closed = False
        self.away: set[int] = set()  # handles of the versions whose servers are away
        self.epoch = 0  # counts the connections, because a handle is good on the connection that it came by alone

    @property
    def is_up(self) -> bool:
        """Whether the engine's process can be asked."""
        return self._connection is not None and self._connection.is_open

    @property
    def is_stuck(self) -> bool:
        """Whether the engine turns every group away, by its last frame, or says nothing any more."""
        return bool(self._state & IS_STUCK) or self.is_silent

    @property
    def is_silent(self) -> bool:
        """Whether the connection stands, and the engine has said nothing for seconds."""
        return self.is_up and time.monotonic() - self._heard_at > _SILENCE_S

    def has_bulk_room(self, lane: str) -> bool:
        """Return what the engine's last frame says of a lane; see `Batcher.has_bulk_room`."""
        return bool(self._state & 1 << QUEUE_LANES.index(lane))

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                connection = _Connection(self)
                try:
                    await loop.create_unix_connection(lambda: connection, str(self._path))  # noqa: B023 - used at once
                except OSError:  # the engine is not there yet, or not again
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._connection, self._heard_at = connection, time.monotonic()
                self.epoch += 1
                self._changed.set()
                log.info("connected to the engine", connections=self.epoch)
                await connection.lost.wait()
                log.warning("the engine's process has ended, and is started again")
        finally:
            self._is_closed = True
            if self._connection is not None:
                self._connection.hang_up()
            self.lose()
            self._changed.set()

    def ask(self, kind: Kind, payload: bytes) -> tuple[int, asyncio.Future[Any]]:
        """Send a request. Returns its number, and the future of what the engine answers. Raises NoModel if it is away.

        The future gets None for RESERVE, `Scored` for SCORE, and a dictionary for HOLD, or the error that the engine
        sent, or NoModel if the connection is lost first.
        """
        if (connection := self._connection) is None:
            raise away()
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        connection.send(kind, number, payload)
        return number, answer

    def tell(self, kind: Kind, number: int) -> None:
        """Send what has no answer, unless the engine is away."""
        if self._connection is not None:
            self._connection.send(kind, number)

    def forget(self, number: int) -> bool:
        """Wait no more for the answer of a request. Returns whether it had not come."""
        return self._waiting.pop(number, None) is not None

    async def until_up(self) -> None:
        """Wait until the engine can be asked. Raises NoModel after a minute, and once the link is closed."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not self.is_up and not self._is_closed:
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            raise away() from None
        if self._is_closed:
            raise away()

    def take(self, kind: int, state: int, number: int, payload: bytes) -> None:
        """Give an answer to who waits for it. What comes for nobody is dropped: its caller went away."""
        self._state, self._heard_at = state, time.monotonic()
        if kind == Kind.AWAY:
            (self.away.add if payload == IS_AWAY else self.away.discard)(number)
            return
        answer = self._waiting.pop(number, None)
        if answer is None or answer.done():
            return
        if kind == Kind.FAILED:
            answer.set_exception(error_from_bytes(payload))
        else:
            read = _READERS.get(Kind(kind))
            answer.set_result(read(payload) if read is not None else None)

    def lose(self) -> None:
        """Fail all who wait, because no answer will come."""
        self._connection, self._state = None, 0
        self.away.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(away())


def away() -> NoModel:
    """Return the error of a call that needs the engine's process while there is none."""
    return NoModel("the engine's process has ended, and is started again")
