"""The queue of the engine's process, for a front: it admits, orders and runs what all fronts hand over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import EngineStuck, QueueFull
from rewardloop_server.channel.frames import Kind
from rewardloop_server.channel.link import EngineLink, away
from rewardloop_server.channel.messages import Place, Room, group_to_bytes, room_to_bytes
from rewardloop_server.channel.remote_versions import RemoteModel, RemoteVersions
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.lane import Scored


class RemoteBatcher:
    """`Batching` over the link to the engine's process. Every decision about the queue is made there.

    Args:
        link: The connection.
        versions: What the engine holds for this front.
        metrics: Where comparisons are counted that the shadow's lane had no room for.
    """

    def __init__(self, link: EngineLink, versions: RemoteVersions, metrics: ServerMetrics) -> None:
        self._link = link
        self._versions = versions
        self._metrics = metrics

    @property
    def is_stuck(self) -> bool:
        """Whether every group is turned away: a run does not end, or the engine is away, hangs or lacks the version."""
        return self._link.is_stuck or not self._versions.is_served

    def has_bulk_room(self, lane: str) -> bool:
        return self._link.has_bulk_room(lane)

    def set_gauges(self) -> None:
        """Do nothing: the engine's process sets its lanes' gauges."""

    @contextmanager
    def reserved(
        self,
        lane: str,
        tokens: int,
        deadline: float | None,
        caller: str,
        *,
        account: str | None = None,
        is_bounded: bool = True,
    ) -> Iterator[Awaitable[None]]:
        """Reserve room as `Batcher.reserved` does. The block must await the grant that it is given."""
        if self._link.is_silent:
            raise EngineStuck("the engine's process does not answer")
        place = Place(lane, deadline, caller, caller if account is None else account)
        number, granted = self._link.ask(Kind.RESERVE, room_to_bytes(Room(place, tokens, is_bounded)))
        try:
            yield granted
        finally:
            self._link.forget(number)
            self._link.tell(Kind.RELEASE, number)

    async def score(
        self,
        model: RemoteModel,
        rows: Sequence[Encoded],
        lane: str,
        deadline: float | None,
        caller: str = "",
        *,
        account: str | None = None,
    ) -> Scored:
        """Queue one group and wait for its logits, as `Batcher.score` does.

        Raises NoModel if the engine's process ends, or has not loaded the version again since it did.
        """
        if model.epoch != self._link.epoch:
            raise away()
        place = Place(lane, deadline, caller, caller if account is None else account)
        number, answer = self._link.ask(Kind.SCORE, group_to_bytes(place, model.handle, rows))
        try:
            scored: Scored = await answer
        except asyncio.CancelledError:
            if self._link.forget(number):
                self._link.tell(Kind.CANCEL, number)
            raise
        return scored

    async def score_shadow(self, model: RemoteModel, rows: Sequence[Encoded]) -> Scored | None:
        """Score a group in the shadow lane, as `Batcher.score_shadow` does."""
        try:
            return await self.score(model, rows, "shadow", None)
        except QueueFull:
            self._metrics.shadow_dropped_total.labels(model=model.manifest.model).inc()
            return None

    async def run(self) -> None:
        """Keep the connection, and the versions held, until cancelled."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._link.run())
            both.create_task(self._versions.keep())
