"""The engine's side of the channel: takes what fronts ask for, and answers from the batcher and the holdings."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import structlog

from rewardloop_server.calls.errors import InternalError, NoModel, RewardloopError
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.channel.frames import FrameProtocol, Kind
from rewardloop_server.channel.holdings import Holdings
from rewardloop_server.channel.messages import (
    IS_AWAY,
    IS_STUCK,
    error_to_bytes,
    group_from_bytes,
    json_from_bytes,
    json_to_bytes,
    room_from_bytes,
    scored_to_bytes,
)
from rewardloop_server.scoring.batch import Batcher
from rewardloop_server.scoring.lane import Group, Scored

log = structlog.get_logger()

_STATE_EVERY_S = 0.1
_STATE_AGE_S = 0.001
# So long versions stay in memory that a front held which died, because the next one holds them again.
_LINGER_S = 15.0


class Desk:
    """Serves the fronts' connections. Used from the event loop.

    Args:
        batcher: Admits, orders and runs the groups of all fronts.
        holdings: The versions that fronts hold.
    """

    def __init__(self, batcher: Batcher, holdings: Holdings) -> None:
        self.batcher = batcher
        self.holdings = holdings
        self.connections: set[FrontConnection] = set()
        self._state, self._state_at = 0, -math.inf

    def connection(self) -> FrontConnection:
        """Return what answers a new connection."""
        return FrontConnection(self)

    @property
    def state(self) -> int:
        """The engine's state as each frame carries it. The batcher is asked once a millisecond, as frames are many."""
        now = time.monotonic()
        if now - self._state_at > _STATE_AGE_S:
            bits = sum(self.batcher.has_bulk_room(lane) << number for number, lane in enumerate(QUEUE_LANES))
            self._state, self._state_at = bits | (IS_STUCK if self.batcher.is_stuck else 0), now
        return self._state

    async def report(self) -> None:
        """Tell all fronts the engine's state again and again, until cancelled: also those that ask for nothing."""
        while True:
            for connection in tuple(self.connections):
                connection.tell_away()
                connection.send(Kind.STATE, 0, state=self.state)
            await asyncio.sleep(_STATE_EVERY_S)


class FrontConnection(FrameProtocol):
    """One front. When its connection ends, its groups are dropped, and what it held and reserved is given back."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._rooms: dict[int, AbstractContextManager[None]] = {}
        self._groups: dict[int, tuple[Group, str]] = {}
        self._held: Counter[int] = Counter()  # by handle
        self._away: set[int] = set()  # handles that the front was told to be away
        self._loads: set[asyncio.Task[None]] = set()
        self._take: dict[int, Callable[[int, bytes], None]] = {
            Kind.RESERVE: self._reserve,
            Kind.RELEASE: self._release,
            Kind.SCORE: self._score,
            Kind.CANCEL: self._cancel,
            Kind.HOLD: self._hold,
            Kind.LET_GO: self._let_go,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._desk.connections.add(self)
        self.send(Kind.STATE, 0, state=self._desk.state)

    def received(self, kind: int, state: int, number: int, payload: bytes) -> None:
        try:
            self._take[kind](number, payload)
        except RewardloopError as error:
            self._refuse(number, error)
        except Exception:  # a bug, which must not end the connection and with it all groups of this front
            log.exception("a front's frame was not understood", kind=kind)
            self._refuse(number, InternalError())

    def ended(self) -> None:
        self._desk.connections.discard(self)
        for load in self._loads:
            load.cancel()
        for number in tuple(self._groups):
            self._cancel(number, b"")
        for number in tuple(self._rooms):
            self._release(number, b"")
        loop = asyncio.get_running_loop()
        for handle in self._held.elements():
            loop.call_later(_LINGER_S, self._desk.holdings.let_go, handle)
        self._held.clear()

    def _answer(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        self.send(kind, number, payload, self._desk.state)

    def tell_away(self) -> None:
        """Tell the front which of its versions' servers are away, if that has changed."""
        holdings = self._desk.holdings
        models = {handle: holdings.model(handle) for handle, count in self._held.items() if count > 0}
        away = {handle for handle, model in models.items() if model is not None and model.is_away}
        for handle in away ^ self._away:
            self._answer(Kind.AWAY, handle, IS_AWAY if handle in away else b"")
        self._away = away

    def _refuse(self, number: int, error: RewardloopError) -> None:
        self.tell_away()  # who is refused for this is not to take it for something else
        self._answer(Kind.FAILED, number, error_to_bytes(error))

    def _reserve(self, number: int, payload: bytes) -> None:
        (lane, deadline, caller, account), tokens, is_bounded = room_from_bytes(payload)
        room = self._desk.batcher.reserved(
            lane, tokens, deadline, self._queue_name(caller, account), account=account, is_bounded=is_bounded
        )
        room.__enter__()
        self._rooms[number] = room
        self._answer(Kind.GRANTED, number)

    def _release(self, number: int, _: bytes) -> None:
        if (room := self._rooms.pop(number, None)) is not None:
            room.__exit__(None, None, None)

    def _score(self, number: int, payload: bytes) -> None:
        (lane, deadline, caller, account), handle, rows = group_from_bytes(payload)
        batcher = self._desk.batcher
        if (model := self._desk.holdings.model(handle)) is None or not self._held[handle]:
            raise NoModel("this front holds no such version")
        if lane == "shadow":
            batcher.admit_shadow(model, rows, caller)  # refused rather than queued
        group = batcher.submit(model, rows, lane, deadline, self._queue_name(caller, account), account=account)
        self._groups[number] = (group, lane)
        group.outcome.add_done_callback(partial(self._scored, number))

    def _scored(self, number: int, outcome: asyncio.Future[Scored]) -> None:
        self._groups.pop(number, None)
        if outcome.cancelled():
            return
        if (error := outcome.exception()) is None:
            self._answer(Kind.SCORED, number, scored_to_bytes(outcome.result()))
        elif isinstance(error, RewardloopError):
            self._refuse(number, error)
        else:
            log.error("a group failed", exc_info=error)
            self._refuse(number, InternalError())

    def _cancel(self, number: int, _: bytes) -> None:
        if (waiting := self._groups.pop(number, None)) is not None:
            self._desk.batcher.withdraw(*waiting)

    def _hold(self, number: int, payload: bytes) -> None:
        load = asyncio.get_running_loop().create_task(self._load(number, json_from_bytes(payload)))
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)

    async def _load(self, number: int, named: dict[str, Any]) -> None:
        try:
            handle, model, directory = await self._desk.holdings.hold(named["model"], named["version"])
        except RewardloopError as error:
            return self._refuse(number, error)
        if not self.is_open:
            return self._desk.holdings.let_go(handle)
        self._held[handle] += 1
        said = {"handle": handle, "digest": model.manifest.digest, "directory": str(directory.absolute())}
        return self._answer(Kind.HELD, number, json_to_bytes(said))

    def _let_go(self, handle: int, _: bytes) -> None:
        if self._held[handle] > 0:
            self._held[handle] -= 1
            self._desk.holdings.let_go(handle)

    def _queue_name(self, caller: str, account: str) -> str:
        """Return the name by which runs are fair. Bulk calls are numbered by each front for itself."""
        return caller if caller == account else f"{caller} of {id(self)}"
