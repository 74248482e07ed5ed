"""batch: chooses the next run from what waits, lays it out while another runs, and keeps the engine fed.

Work-conserving: the engine never waits while something is queued, and a run holds what came while the last one ran.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable, QueueFull
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import Floats, RewardModel
from rewardloop_server.scoring.lane import Group, Lane, Row, Scored
from rewardloop_server.scoring.offer import Offer, Slot
from rewardloop_server.scoring.priority import step_back

log = structlog.get_logger()

# However short runs should be, they may take this many times the fixed cost of a run: a tenth is lost at most.
_LEAST_FIXED_COSTS = 10

# A run is chosen from so many runs' worth of the most urgent rows: enough to find rows of like lengths, and planning
# over all of a long queue would take the event loop a tenth of its time.
_WINDOW_RUNS = 8


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """``max_tokens`` and ``max_s`` (of work, at the present pace) bound what waits; ``run_s`` bounds one run."""

    max_tokens: int
    max_s: float = math.inf
    run_s: float = math.inf


class Batcher:
    """Three lanes in front of the engine's threads, one a stream: production, then trainer, then shadow.

    The trainer lane goes first once when it has waited ``trainer_max_wait_s`` for a run, so that it cannot starve. A
    production group waits at most for the run in flight and one more before its turn comes (see `Lane`): a run of
    another lane that is laid out is put back for it. A run has at most ``token_budget`` tokens, or one row.
    ``engine_nice``: niceness of the engine's threads. ``streams``: how many runs there are at once; one that is alone
    has all threads of the device.
    """

    def __init__(
        self,
        *,
        token_budget: int,
        lanes: Mapping[str, LaneLimits],
        trainer_max_wait_s: float,
        metrics: ServerMetrics,
        engine_nice: int = 0,
        streams: int = 1,
    ) -> None:
        self._budget = token_budget
        self._engine_nice = engine_nice
        self._streams = streams
        self._limits = lanes
        self._lanes = {
            name: Lane(name, max_tokens=lanes[name].max_tokens, max_s=lanes[name].max_s, metrics=metrics)
            for name in QUEUE_LANES
        }
        self._trainer_max_wait_s = trainer_max_wait_s
        self._metrics = metrics
        self._slot = Slot()
        self._offered: Offer | None = None
        self._ends: dict[Offer, float] = {}  # of the runs in flight, as estimated
        self._loop: asyncio.AbstractEventLoop | None = None
        self._will_feed = False
        self._broken: asyncio.Future[None] | None = None

    @contextmanager
    def reserved(
        self, lane: str, tokens: int, deadline: float | None, caller: str, *, is_bounded: bool = True
    ) -> Iterator[None]:
        """Room for a group of about ``tokens`` while it is made ready to be scored.

        Decided before any work is done on the request, so that refusing is cheap. Raises QueueFull (not unless
        ``is_bounded``), or DeadlinePassed when what is ahead of the group takes longer than it has.
        """
        queue = self._lanes[lane]
        if deadline is not None:
            now = time.monotonic()
            wait_s = self._wait_s(lane, caller, deadline, now)
            if now + wait_s > deadline:
                raise DeadlinePassed(f"about {wait_s * 1000:.0f} ms of work are ahead of the request: too late for it")
        queue.reserve(tokens, is_bounded=is_bounded)
        try:
            yield
        finally:
            queue.release(tokens)

    def has_bulk_room(self, lane: str) -> bool:
        """Whether a bulk call that has work in flight may add to it."""
        return self._lanes[lane].has_bulk_room

    def set_gauges(self) -> None:
        """Set the lanes' gauges."""
        for lane in self._lanes.values():
            lane.set_gauges()

    async def score(
        self, model: RewardModel, rows: Sequence[Encoded], lane: str, deadline: float | None, caller: str = ""
    ) -> Scored:
        """Queue one group and wait for all of its rows. ``deadline`` is on the monotonic clock.

        Cancelled, what has not run is dropped. Raises DeadlinePassed, or NotLoadable when the model fails on a run.
        """
        group = Group(model, rows, caller, deadline, asyncio.get_running_loop().create_future())
        queue = self._lanes[lane]
        queue.push(group)
        self._feed_soon()
        try:
            return await group.outcome
        finally:
            if group.waiting:
                queue.drop(group)
                self._feed_soon()

    async def score_shadow(self, model: RewardModel, rows: Sequence[Encoded]) -> Scored | None:
        """Score where it holds nobody up; None, and counted, when too much waits for that already."""
        try:
            with self.reserved("shadow", sum(len(row.ids) for row in rows), None, ""):
                pass
        except QueueFull:
            self._metrics.shadow_dropped_total.inc()
            return None
        return await self.score(model, rows, "shadow", None)

    async def run(self) -> None:
        """Drive the engine until cancelled; ends within the run in flight."""
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        engine = [
            threading.Thread(target=self._drive, args=(self._loop,), name=f"engine-{i}", daemon=True)
            for i in range(self._streams)
        ]
        for stream in engine:
            stream.start()
        self._feed_soon()
        try:
            await self._broken
        finally:
            self._loop = None
            self._slot.close()
            for stream in engine:
                await asyncio.shield(asyncio.to_thread(stream.join))

    def _drive(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread of the engine."""
        step_back(self._engine_nice)
        while (offer := self._slot.take()) is not None:
            started = time.monotonic()
            loop.call_soon_threadsafe(self._taken, offer, started)
            outcome: Floats | Exception
            try:
                outcome = offer.model.execute(offer.feeds, alone=offer.alone)
            except Exception as error:  # whatever ONNX Runtime raises fails this run's groups, not the engine
                outcome = error
            self._slot.done()
            loop.call_soon_threadsafe(self._ran, offer, outcome, time.monotonic() - started)
            del offer, outcome  # a version must not live on in this thread while it waits

    def _feed_soon(self) -> None:
        """Once for all that comes in one turn of the event loop."""
        if self._loop is not None and not self._will_feed:
            self._will_feed = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        self._will_feed = False
        if self._loop is None or self._broken is None or self._broken.done():
            return
        try:
            self._offer_best(time.monotonic())
        except Exception as error:
            self._broken.set_exception(error)  # a bug: `run` raises it, and the process ends rather than limps on

    def _offer_best(self, now: float) -> None:
        if (offered := self._offered) is not None:
            outranked = offered.lane.name != "production" and self._lanes["production"].tokens
            grown = offered.may_grow and offered.lane.pushes != offered.pushes
            shrunk = any(index not in group.waiting for group, index in offered.rows)
            if not (outranked or grown or shrunk):
                return
            if not self._slot.withdraw():
                self._taken(offered, now)
            self._offered = None
        for lane in self._order(now):
            if (offer := self._choose(lane, now)) is not None:
                self._offered = offer
                self._slot.put(offer)
                return

    def _order(self, now: float) -> list[Lane]:
        production, trainer, shadow = (self._lanes[name] for name in QUEUE_LANES)
        if trainer.tokens and production.tokens and trainer.oldest_wait_s(now) > self._trainer_max_wait_s:
            return [trainer, production, shadow]
        return [production, trainer, shadow]

    def _choose(self, lane: Lane, now: float) -> Offer | None:
        """The lane's best run that holds its most urgent row; None when nothing waits there."""
        for group in lane.expired(now):
            self._fail(lane, group, DeadlinePassed("the deadline passed while the request was queued"))
        run_s = self._limits[lane.name].run_s
        while waiting := lane.window(min(self._budget, lane.tokens_in(_WINDOW_RUNS * run_s))):
            model = waiting[0][0].model
            encoded = [group.rows[index] for group, index in waiting]
            limit_s = max(run_s, _LEAST_FIXED_COSTS * model.cost.fixed_s)
            try:
                run = model.plan(encoded, limit_s, self._budget)[0]
                feeds = model.lay_out(encoded, run)
            except Exception as error:  # as in the engine's thread
                self._fail_all(lane, waiting, model, error)
                continue
            rows = [waiting[i] for i in run.rows]
            may_grow = len(rows) == len(waiting) and run.cost_s < limit_s / 2 and feeds.tokens < self._budget / 2
            is_rest = len(rows) == len(waiting) and lane.tokens == sum(len(row.ids) for row in encoded)
            alone = is_rest and not any(other.tokens for other in self._lanes.values() if other is not lane)
            return Offer(lane, model, rows, run, feeds, may_grow, lane.pushes, alone)
        return None

    def _taken(self, offer: Offer, now: float) -> None:
        """The engine has the run; told again by its thread when `_offer_best` saw it first."""
        if offer is self._offered:
            self._offered = None
            offer.lane.take(offer.rows, now)
            self._ends[offer] = now + offer.run.cost_s * self._share(offer)
            self._feed_soon()

    def _share(self, offer: Offer) -> int:
        """How many such runs the device has at once: each takes that many times as long as it would alone."""
        return 1 if offer.alone else self._streams

    def _ran(self, offer: Offer, outcome: Floats | Exception, run_s: float) -> None:
        del self._ends[offer]
        if isinstance(outcome, Exception):
            self._fail_all(offer.lane, offer.rows, offer.model, outcome)
            return
        tokens = 0
        for (group, index), logits in zip(offer.rows, outcome, strict=True):
            group.logits[index] = logits
            group.unscored -= 1
            tokens += len(group.rows[index].ids)
        for group in dict.fromkeys(group for group, _ in offer.rows):
            group.run_s += run_s
            if not group.unscored and not group.outcome.done():
                queue_s = group.started - group.enqueued
                scored = Scored(group.logits, queue_s, group.run_s, offer.feeds.rows, offer.feeds.real_tokens)
                group.outcome.set_result(scored)
        offer.lane.ran(tokens, run_s / self._share(offer))
        self._metrics.batch_rows.observe(offer.feeds.rows)
        self._metrics.batch_tokens.observe(offer.feeds.real_tokens)
        self._metrics.padding_ratio.observe(1 - offer.feeds.real_tokens / offer.feeds.tokens)

    def _wait_s(self, lane: str, caller: str, deadline: float, now: float) -> float:
        """The least that a group which came now would wait. Runs in flight count by their estimates."""
        busy_s = min(self._ends.values()) - now if len(self._ends) == self._streams else 0.0
        wait = max(0.0, busy_s) + self._lanes[lane].wait_s(caller, deadline)
        return wait + (0.0 if lane == "production" else self._lanes["production"].backlog_s)

    def _fail_all(self, lane: Lane, rows: Sequence[Row], model: RewardModel, error: Exception) -> None:
        log.error("run failed", version=model.manifest.version, rows=len(rows), exc_info=error)
        for group in {group for group, _ in rows}:
            self._fail(lane, group, NotLoadable(f"the model failed on this batch: {error}"))

    def _fail(self, lane: Lane, group: Group, error: Exception) -> None:
        lane.drop(group)
        if not group.outcome.done():
            group.outcome.set_exception(error)
