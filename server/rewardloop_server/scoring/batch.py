"""batch: chooses the next run from the waiting rows, lays it out while another runs, and keeps the engine busy.

A run holds rows that came during the last one, and the engine is never idle while rows wait. While a caller has short
runs, the long runs of other callers go one at a time, so that a stream is left for the short ones. Of several GPUs they
leave one.
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
from rewardloop_server.calls.errors import DeadlinePassed, QueueFull
from rewardloop_server.calls.vocabulary import ELSEWHERE, QUEUE_LANES
from rewardloop_server.device.priority import step_back
from rewardloop_server.guard.watch import RunBounds, Watch
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.thread_load import ThreadLoad
from rewardloop_server.scoring.engine import EngineBroken, OutOfMemory, RewardModel
from rewardloop_server.scoring.isolate import Isolation
from rewardloop_server.scoring.lane import Group, Lane, Scored
from rewardloop_server.scoring.offer import Failure, Offer, Outcome, Places, Slot, drive

log = structlog.get_logger()

# A run may take this many times its fixed cost, however short runs should be. So at most a tenth of the time is lost.
_LEAST_FIXED_COSTS = 10

# A run is chosen from this many runs' worth of the most urgent rows. That is enough to find rows of similar length, and
# planning over all of a long queue would take a tenth of the event loop's time.
_WINDOW_RUNS = 8

# After a run for which memory did not suffice, the most tokens of a run are halved. Each later run multiplies them by
# this, so that they are back after about 700 runs.
_GROWTH = 1.001

# How much of the seconds of earlier runs is kept with each later one, when their sum is compared with the estimates.
# Runs are planned shorter by no more than the second.
_KEPT, _MOST_SLOWNESS = 0.9, 4.0

# While the event loop computes for more than this share of its time, it takes a core from a run on all threads, whose
# other threads then wait for the one that has none: 17 tokens took 100 to 160 ms instead of 13 (2 cores).
_BUSY_LOOP = 0.5

# Of so many callers whose long run has to wait, others are let by.
_MOST_PASSED = 4

_BOUNDS = RunBounds()
_ONE_RUN = Places()


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one lane.

    Attributes:
        max_tokens: Most tokens that wait.
        max_s: Most seconds of work that wait, at the present pace.
        run_s: Most estimated seconds of one run. The estimate is multiplied by how much longer than estimated the
            latest runs took, because other work shares the cores.
    """

    max_tokens: int
    max_s: float = math.inf
    run_s: float = math.inf


class Batcher:
    """Three lanes in front of the engine's threads: production goes before trainer, and trainer before shadow.

    A production group waits at most for the run in flight and one more before its turn comes (see `Lane`), because a
    run of another lane that is laid out is put back for it.

    While a run does not end, every group is turned away with EngineStuck, but for those of that run: once it has
    stopped, they run one by one, and the one that holds the engine again fails. The same holds while a version that ran
    when it was warmed runs nothing any more; if that lasts, `run` raises EngineBroken. A version that a server
    elsewhere runs turns away its own groups alone.

    Args:
        token_budget: Most tokens of one run, unless it has a single row.
        lanes: Bounds of each lane.
        trainer_max_wait_s: After this many seconds without a run the trainer lane goes first once, so that it cannot
            starve.
        metrics: Where queues and runs are measured.
        engine_nice: By how much the engine's threads raise their niceness.
        places: Where runs go, each in a thread of its own. A run that is alone at its place has all threads there,
            unless the event loop needs one of them, and so has a long run that lets short ones of other callers by.
        watch: Stops runs that do not end.
        bounds: How long runs may take.
    """

    def __init__(
        self,
        *,
        token_budget: int,
        lanes: Mapping[str, LaneLimits],
        trainer_max_wait_s: float,
        metrics: ServerMetrics,
        engine_nice: int = 0,
        places: Places = _ONE_RUN,
        watch: Watch | None = None,
        bounds: RunBounds = _BOUNDS,
    ) -> None:
        self._budget = self._full_budget = float(token_budget)
        self._engine_nice = engine_nice
        self._places = places
        for place in places.names:
            metrics.run_seconds_total.labels(device=place)  # so that one that has not run shows 0
        self._limits = lanes
        self._recent_s = self._recent_estimated_s = 0.0  # of the latest runs
        self._lanes = {
            name: Lane(name, max_tokens=lanes[name].max_tokens, max_s=lanes[name].max_s, metrics=metrics)
            for name in QUEUE_LANES
        }
        self._trainer_max_wait_s = trainer_max_wait_s
        self._metrics = metrics
        self._watch = watch or Watch()
        self._bounds = bounds
        self._isolation = Isolation(self._lanes, metrics)
        self._loop_load = ThreadLoad()
        self._slot = Slot(self._places)
        self._offered: Offer | None = None
        self._offered_at = 0  # how many groups had come by then
        self._ends: dict[Offer, float] = {}  # estimated ends of the runs in flight
        self._loop: asyncio.AbstractEventLoop | None = None
        self._will_feed = False
        self._broken: asyncio.Future[None] | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether a run here did not end in time, and it is not known yet which of its groups was at fault."""
        return self._isolation.is_stuck

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
    ) -> Iterator[None]:
        """Reserve room for a group while it is tokenized. This comes before any work, so that refusing is cheap.

        Args:
            lane: The lane that it will wait in.
            tokens: About how many tokens it has.
            deadline: When its caller stops waiting, on the monotonic clock; None for never.
            caller: The caller among whose groups it will wait.
            account: The name whose share of the lane it takes; by default the caller.
            is_bounded: Refuse the group if that share has no room.

        Raises:
            QueueFull: The share has no room and ``is_bounded``.
            DeadlinePassed: The work ahead of the group takes longer than its caller waits.
            EngineStuck: A run does not end.
        """
        self._isolation.refuse_if_stuck()
        queue = self._lanes[lane]
        if deadline is not None:
            now = time.monotonic()
            wait_s = self._wait_s(lane, caller, deadline, now)
            if now + wait_s > deadline:
                raise DeadlinePassed(f"about {wait_s * 1000:.0f} ms of work are ahead, longer than the deadline leaves")
        account = caller if account is None else account
        queue.reserve(tokens, account, is_bounded=is_bounded)
        try:
            yield
        finally:
            queue.release(tokens, account)

    def has_bulk_room(self, lane: str) -> bool:
        """Return whether a bulk call that has groups in flight may add another to the lane."""
        return self._lanes[lane].has_bulk_room

    def set_gauges(self) -> None:
        """Set the lanes' gauges."""
        for lane in self._lanes.values():
            lane.set_gauges()

    async def score(
        self,
        model: RewardModel,
        rows: Sequence[Encoded],
        lane: str,
        deadline: float | None,
        caller: str = "",
        *,
        account: str | None = None,
    ) -> Scored:
        """Queue one group and wait for all of its rows. If the caller is cancelled, rows that have not run are dropped.

        Args:
            model: The version that scores it.
            rows: Its sequences.
            lane: The lane to wait in.
            deadline: When its caller stops waiting, on the monotonic clock; None for never.
            caller: The caller among whose groups it waits.
            account: As of `reserved`.

        Raises:
            DeadlinePassed: The deadline passed while it waited.
            NotLoadable: The model failed on this group, or on everything.
            InternalError: The model gave this group a logit that is not finite, or did not end on it.
            EngineStuck: A run does not end, or the version's server is away.
        """
        group = self.submit(model, rows, lane, deadline, caller, account=account)
        try:
            return await group.outcome
        finally:
            self.withdraw(group, lane)

    def submit(
        self,
        model: RewardModel,
        rows: Sequence[Encoded],
        lane: str,
        deadline: float | None,
        caller: str = "",
        *,
        account: str | None = None,
    ) -> Group:
        """Queue one group, whose ``outcome`` gets what `score` returns or raises. Raises EngineStuck."""
        self._isolation.refuse_if_stuck()
        self._isolation.refuse_if_away(model)
        outcome: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        group = Group(model, rows, caller, deadline, outcome, caller if account is None else account)
        self._lanes[lane].push(group)
        self._feed_soon()
        return group

    def withdraw(self, group: Group, lane: str) -> None:
        """Drop the rows of a group that have not run, and answer it no more."""
        group.outcome.cancel()
        if group.waiting:
            self._lanes[lane].drop(group)
            self._feed_soon()

    def admit_shadow(self, model: RewardModel, rows: Sequence[Encoded], caller: str = "") -> None:
        """Raise QueueFull if the shadow lane has no room for a group, or if the version's server is away."""
        if model.is_away:
            raise QueueFull(f"the server that runs version {model.manifest.version} is away")
        with self.reserved("shadow", sum(len(row.ids) for row in rows), None, caller):
            pass

    async def score_shadow(self, model: RewardModel, rows: Sequence[Encoded]) -> Scored | None:
        """Score a group in the shadow lane.

        Returns None, and counts the group as dropped, if that lane is full or the version's server is away.
        """
        try:
            self.admit_shadow(model, rows)
        except QueueFull:
            self._metrics.shadow_dropped_total.labels(model=model.manifest.model).inc()
            return None
        return await self.score(model, rows, "shadow", None)

    async def run(self) -> None:
        """Drive the engine until cancelled. Ends after the runs in flight.

        Raises:
            EngineBroken: A version runs nothing any more, so that the process has to end.
        """
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        engine = [
            threading.Thread(target=self._drive, args=(self._loop,), name=f"engine-{i}", daemon=True)
            for i in range(self._places.most_runs)
        ]
        for stream in engine:
            stream.start()
        self._feed_soon()
        try:
            await self._broken
        finally:
            self._loop = None
            self._slot.close()
            await _ended(engine, self._bounds.grace_s)

    def _drive(self, loop: asyncio.AbstractEventLoop) -> None:
        step_back(self._engine_nice)
        drive(self._slot, self, loop, self._watch, self._limit_s, self._bounds)

    def _limit_s(self, offer: Offer) -> float:
        return self._bounds.run_s(offer.run.cost_s * self._share(offer))

    def _feed_soon(self) -> None:
        """Call `_feed` once for all groups that come in one turn of the event loop."""
        if self._loop is not None and not self._will_feed:
            self._will_feed = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        self._will_feed = False
        if self._loop is None or self._broken is None or self._broken.done():
            return
        try:
            self._offer_best(time.monotonic())
        except Exception as error:  # a bug
            self._end(error)

    def _end(self, error: Exception, cause: Exception | None = None) -> None:
        """Let `run` raise the error, so that the process ends rather than limps on."""
        error.__cause__ = cause
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _offer_best(self, now: float) -> None:
        """Put the best run into the slot, instead of the one that is there if that is no longer the best."""
        if (offered := self._offered) is not None:
            outranked = offered.lane.name != "production" and self._lanes["production"].tokens
            is_new = offered.lane.pushes != offered.pushes
            overtaken = is_new and offered.part is None and offered.lane.is_overtaken(offered.rows)
            grown = is_new and offered.may_grow
            shrunk = any(index not in group.waiting for group, index in offered.rows)
            has_waited = offered.part is None and offered.waits_for(self._ends, self._places)
            is_passed = has_waited and self._pushes != self._offered_at
            if not (outranked or overtaken or grown or shrunk or is_passed):
                return
            if not self._slot.withdraw():
                self.taken(offered, now)
            self._offered = None
        best: Offer | None = None
        for lane in self._order(now):
            offer = self._choose(lane, now)
            best = best or offer
            if offer is not None and not offer.waits_for(self._ends, self._places):
                best = offer
                break
        if best is not None:
            self._offered, self._offered_at = best, self._pushes
            self._slot.put(best)

    @property
    def _pushes(self) -> int:
        """The groups that have come to any lane so far."""
        return sum(lane.pushes for lane in self._lanes.values())

    def _order(self, now: float) -> list[Lane]:
        """Return the lanes, the one to serve first at the front."""
        production, trainer, shadow = (self._lanes[name] for name in QUEUE_LANES)
        if trainer.tokens and production.tokens and trainer.oldest_wait_s(now) > self._trainer_max_wait_s:
            return [trainer, production, shadow]
        return [production, trainer, shadow]

    def _choose(self, lane: Lane, now: float, without: tuple[str, ...] = ()) -> Offer | None:
        """Return the lane's best run that holds its most urgent row, or None if nothing waits there.

        If that is a long run which has to wait, the best short one of other callers goes first. ``without`` names
        accounts that are not looked at.
        """
        for group in lane.expired(now):
            lane.fail(group, DeadlinePassed("the deadline passed while the request was queued"))
        run_s = self._limits[lane.name].run_s / self._slowness()
        window_s = _WINDOW_RUNS * run_s / len(self._places.names)
        while waiting := lane.window(min(self._budget, lane.tokens_in(window_s)), without):
            model = waiting[0][0].model
            part = waiting[0][0].waiting[waiting[0][1]]
            encoded = [group.rows[index] for group, index in waiting]
            least_s = _LEAST_FIXED_COSTS * model.cost.fixed_s
            limit_s = max(run_s / self._places.streams, least_s)
            try:
                run = model.plan(encoded, limit_s, int(self._budget))[0]
                feeds = model.lay_out(encoded, run)
            except Exception as error:  # as in `_drive`, it fails these rows and not the engine
                self._isolation.failed(lane, waiting, model, part, Failure(error))
                continue
            rows = [waiting[i] for i in run.rows]
            may_grow = (
                part is None
                and len(rows) == len(waiting)
                and run.cost_s < limit_s / 2
                and feeds.tokens < self._budget / 2
            )
            is_rest = len(rows) == len(waiting) and lane.tokens == sum(len(row.ids) for row in encoded)
            is_last = is_rest and not any(other.tokens for other in self._lanes.values() if other is not lane)
            # The setting is not divided by the slowness, or short runs would count as long while all runs are slow.
            is_long = run.cost_s > max(self._limits[lane.name].run_s / self._places.streams, least_s)
            account = rows[0][0].account
            lets_by = is_long and any(
                each.has_short_runs_of_others(account, now) for each in (lane, self._lanes["production"])
            )
            if lets_by and len(without) < _MOST_PASSED and self._places.has_most_long(self._ends):
                by = self._choose(lane, now, (*without, account))
                if by is not None and not by.is_long:
                    return by
            alone = (is_last or lets_by) and self._loop_load.share() < _BUSY_LOOP
            return Offer(lane, model, rows, run, feeds, may_grow, lane.pushes, alone, part, is_long, lets_by)
        return None

    def taken(self, offer: Offer, now: float) -> None:
        """Note that the engine has taken the run. `_offer_best` may notice it before the engine's thread says so."""
        if offer is self._offered:
            self._offered = None
            offer.lane.take(offer.rows, now, is_long=offer.is_long)
            self._ends[offer] = now + offer.run.cost_s * self._share(offer)
            self._feed_soon()

    def _share(self, offer: Offer) -> int:
        """Return how many such runs share a place, by which each of them takes longer than it would alone."""
        return 1 if offer.alone else self._places.streams

    def _slowness(self) -> float:
        """Return how many times longer than estimated the latest runs took, at least 1."""
        if not self._recent_estimated_s:
            return 1.0
        return min(max(1.0, self._recent_s / self._recent_estimated_s), _MOST_SLOWNESS)

    def overran(self, offer: Offer) -> None:
        """Turn away what waits, but for the groups of this run, which does not end."""
        if offer in self._ends:  # else it has ended in the meantime
            self._isolation.overran(offer)
            self._feed_soon()

    def failing(self, offer: Offer) -> None:
        """Turn away what waits, but for the groups of this run, whose version fails on everything."""
        self._isolation.failing(offer)
        self._feed_soon()

    def lost(self, offer: Offer) -> None:
        """Fail the groups of runs that do not end. No run will follow."""
        self._isolation.convict()

    def ran(self, offer: Offer, outcome: Outcome, run_s: float) -> None:
        """Give a run's logits to its groups, and answer those that are complete."""
        del self._ends[offer]
        device = ELSEWHERE if offer.model.is_elsewhere else self._places.names[offer.place]
        self._metrics.run_seconds_total.labels(device=device).inc(run_s)
        self._isolation.ended(offer)
        if isinstance(outcome, Failure):
            if isinstance(outcome.error, OutOfMemory) and len(offer.rows) > 1:
                # A second run may have been laid out before the first one failed, so its own tokens are halved.
                self._budget = max(1.0, min(self._budget, offer.feeds.tokens / 2))
                log.warning("memory did not suffice for a run, so runs are smaller", most_tokens=int(self._budget))
            self._isolation.failed(offer.lane, offer.rows, offer.model, offer.part, outcome)
            if outcome.is_broken:
                where = self._places.names[offer.place]
                error = EngineBroken(f"version {offer.model.manifest.version} runs nothing any more on {where}")
                self._end(error, outcome.error)
            self._feed_soon()
            return
        if self._budget < self._full_budget:
            self._budget = min(self._full_budget, self._budget * _GROWTH)
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
        offer.lane.ran(tokens, run_s / self._share(offer) / len(self._places.names))
        self._recent_s = _KEPT * self._recent_s + run_s
        self._recent_estimated_s = _KEPT * self._recent_estimated_s + offer.run.cost_s * self._share(offer)
        self._metrics.batch_rows.observe(offer.feeds.rows)
        self._metrics.batch_tokens.observe(offer.feeds.real_tokens)
        self._metrics.padding_ratio.observe(1 - offer.feeds.real_tokens / offer.feeds.tokens)

    def _wait_s(self, lane: str, caller: str, deadline: float, now: float) -> float:
        """Return the least seconds that a group which came now would wait. Runs in flight count as estimated."""
        busy_s = min(self._ends.values()) - now if len(self._ends) == self._places.most_runs else 0.0
        wait = max(0.0, busy_s) + self._lanes[lane].wait_s(caller, deadline)
        return wait + (0.0 if lane == "production" else self._lanes["production"].backlog_s)


async def _ended(threads: Sequence[threading.Thread], patience_s: float) -> None:
    """Wait for the threads. One that is still in a run after so many seconds is left, and ends with the process."""
    deadline = time.monotonic() + patience_s
    for thread in threads:
        await asyncio.shield(asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic())))
