"""offer: how the event loop hands the next run to the engine's threads, and how these execute it, watched."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rewardloop_server.guard.watch import RunBounds, Watch, Work
from rewardloop_server.scoring.engine import EngineAway, Floats, Overrun, RewardModel
from rewardloop_server.scoring.lane import Lane, Part, Row
from rewardloop_server.scoring.layout import Feeds
from rewardloop_server.scoring.plan import Run


@dataclass(frozen=True, slots=True)
class Places:
    """Where the engine runs: on the CPU, or on each GPU.

    Attributes:
        names: The places' names. Versions have sessions for each place, in this order.
        streams: Most runs at once at each place, on which they share it.
    """

    names: tuple[str, ...] = ("cpu",)
    streams: int = 1

    @property
    def most_runs(self) -> int:
        """Most runs at once."""
        return len(self.names) * self.streams

    def has_most_long(self, running: Iterable[Offer]) -> bool:
        """Return whether as many long runs are in flight as may be while other callers have short ones.

        One place is left to these or, of a single place, all of its streams but one.
        """
        return sum(each.is_long for each in running) >= max(1, len(self.names) - 1)


@dataclass(slots=True, eq=False)
class Offer:
    """A run that is laid out. Its rows wait in the lane until the engine takes it.

    Attributes:
        lane: Where its rows wait.
        model: The version that runs.
        rows: Its rows, in the order of its logits.
        run: The run as planned.
        feeds: The input arrays.
        may_grow: It has every row that waited and is short of its limit, so it is chosen again if more rows come.
        pushes: The lane's count of groups when it was chosen.
        is_long: It is estimated to take longer than a run of its lane should while another shares its place, because it
            has a single row, which cannot be cut.
        alone: It may have all threads of its place: nothing keeps the event loop busy, and either nothing else waits
            and (once it is taken) runs there, or `lets_by`.
        lets_by: It waits while as many long runs are in flight as `Places` allows, so that short runs of other callers
            find a stream free.
        part: The part of a failed run that its rows are, if they are one.
        place: Where it runs once it is taken, as an index into `Places.names`.
    """

    lane: Lane
    model: RewardModel
    rows: list[Row]
    run: Run
    feeds: Feeds
    may_grow: bool
    pushes: int
    alone: bool
    part: Part | None = None
    is_long: bool = False
    lets_by: bool = False
    place: int = 0

    def waits_for(self, running: Iterable[Offer], places: Places) -> bool:
        """Return whether the engine takes it only after one of the runs in flight."""
        return self.lets_by and places.has_most_long(running)


@dataclass(frozen=True, slots=True)
class Failure:
    """What came of a run that failed.

    Attributes:
        error: What was raised.
        is_closed: The version was closed before the run.
        is_broken: The version no longer runs even what it ran when it was warmed.
        is_overrun: The run did not end in time and was stopped.
        is_away: The server that runs the version did not answer.
    """

    error: Exception
    is_closed: bool = False
    is_broken: bool = False
    is_overrun: bool = False
    is_away: bool = False


Outcome: TypeAlias = Floats | Failure

# A version that fails on everything is tried again so often.
_TRIAL_EVERY_S = 1.0


class Slot:
    """Holds the next run for the engine's threads. The first thread that is free takes it at once.

    A run goes to the place that has the fewest runs, so that no two are at one place while another is free.

    Args:
        places: The places.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._changed = threading.Condition()
        self._offer: Offer | None = None
        self._running: set[Offer] = set()
        self._is_closed = False

    def put(self, offer: Offer) -> None:
        """Leave a run for the engine."""
        with self._changed:
            self._offer = offer
            self._changed.notify()

    def withdraw(self) -> bool:
        """Take the run back. Returns False if the engine has it already."""
        with self._changed:
            was_here, self._offer = self._offer is not None, None
            return was_here

    def take(self) -> Offer | None:
        """Wait for a run and take it. Returns None once the slot is closed."""
        with self._changed:
            while not self._is_closed and (self._offer is None or self._offer.waits_for(self._running, self._places)):
                self._changed.wait()
            offer, self._offer = self._offer, None
            if offer is None or self._is_closed:
                return None
            runs = Counter(each.place for each in self._running)
            offer.place = min(range(len(self._places.names)), key=runs.__getitem__)
            offer.alone = offer.alone and (offer.lets_by or not runs[offer.place])
            self._running.add(offer)
            return offer

    def done(self, offer: Offer) -> None:
        """Note that a run which was taken has ended."""
        with self._changed:
            self._running.remove(offer)
            if self._offer is not None:
                self._changed.notify()

    def close(self) -> None:
        """Make every `take` return None."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Notes(Protocol):
    """What becomes of runs. Each method is called on the event loop."""

    def taken(self, offer: Offer, now: float) -> None:
        """Note that the engine has taken the run."""

    def overran(self, offer: Offer) -> None:
        """Note that the run did not end in time and was told to stop."""

    def failing(self, offer: Offer) -> None:
        """Note that the run failed, and that its version fails on everything at present. It is tried again."""

    def lost(self, offer: Offer) -> None:
        """Note that it goes on all the same. The process will end."""

    def ran(self, offer: Offer, outcome: Outcome, run_s: float) -> None:
        """Note that the run has ended, after so many seconds."""


def drive(
    slot: Slot,
    notes: Notes,
    loop: asyncio.AbstractEventLoop,
    watch: Watch,
    limit_s: Callable[[Offer], float],
    bounds: RunBounds,
) -> None:
    """Execute runs in this thread until the slot is closed.

    Args:
        slot: Where the runs come from.
        notes: Told what becomes of them.
        loop: The event loop on which it is told.
        watch: Stops runs that do not end.
        limit_s: How long a run may take, in seconds.
        bounds: How long the run of a few tokens may take that shows whether a version still works.
    """

    def post(note: Callable[..., None], *arguments: Any) -> None:
        if not loop.is_closed():  # else this run has outlived the drain
            loop.call_soon_threadsafe(note, *arguments)

    while (offer := slot.take()) is not None:
        started = time.monotonic()
        post(notes.taken, offer, started)
        outcome = _outcome(offer, post, notes, watch, limit_s(offer), bounds)
        slot.done(offer)
        post(notes.ran, offer, outcome, time.monotonic() - started)
        del offer, outcome  # else this thread would keep the version in memory while it waits


def _outcome(
    offer: Offer,
    post: Callable[..., None],
    notes: Notes,
    watch: Watch,
    limit_s: float,
    bounds: RunBounds,
) -> Outcome:
    model = offer.model
    try:
        options = model.options()
    except Exception as error:  # a version that was closed has none
        return Failure(error, is_closed=True)
    is_comparison = offer.lane.name == "shadow" and model.is_elsewhere
    work = Work(
        "run",
        model.manifest.version,
        limit_s,
        stop=lambda: setattr(options, "terminate", True),
        on_overrun=lambda: None if is_comparison else post(notes.overran, offer),
        on_lost=lambda: post(notes.lost, offer),
    )
    watch.begin(work)
    try:
        return model.execute(offer.feeds, place=offer.place, alone=offer.alone, options=options)
    except Exception as error:  # any exception of ONNX Runtime fails this run and not the engine
        overrun = Overrun(f"it did not end within {limit_s:.1f} s") if work.is_overrun else None
        if model.is_elsewhere:
            # After an overrun the server may have stopped answering at all. Nobody waits for a comparison to find out.
            if overrun and not is_comparison and _works(offer, watch, bounds):
                return Failure(overrun, is_overrun=True)
            return Failure(error, is_away=overrun is not None or isinstance(error, EngineAway))
        if overrun or _works(offer, watch, bounds):
            return Failure(overrun or error, is_overrun=overrun is not None)
        post(notes.failing, offer)
        deadline = time.monotonic() + bounds.broken_s
        while not model.is_closed and (left_s := deadline - time.monotonic()) > 0.0:
            time.sleep(min(left_s, _TRIAL_EVERY_S))
            if _works(offer, watch, bounds):
                return Failure(error)
        return Failure(error, is_closed=model.is_closed, is_broken=not model.is_closed)
    finally:
        watch.end()


def _works(offer: Offer, watch: Watch, bounds: RunBounds) -> bool:
    """Return whether the version runs a few tokens where the offer ran, as it did when it was warmed."""
    model = offer.model
    try:
        trial = model.options()
    except Exception:  # it was closed
        return False
    watch.begin(Work("trial run", model.manifest.version, bounds.least_s, lambda: setattr(trial, "terminate", True)))
    try:
        return model.works(place=offer.place, alone=offer.alone, options=trial)
    finally:
        watch.end()
