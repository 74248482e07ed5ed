"""offer: how the event loop hands the next run to the engine's threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring.lane import Lane, Part, Row
from rewardloop_server.scoring.layout import Feeds
from rewardloop_server.scoring.plan import Run


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
        alone: Nothing else waits, and (once it is taken) nothing else runs, so it may have the whole device.
        part: The part of a failed run that its rows are, if they are one.
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


@dataclass(frozen=True, slots=True)
class Failure:
    """What came of a run that failed.

    Attributes:
        error: What was raised.
        is_broken: The version no longer runs even what it ran when it was warmed.
    """

    error: Exception
    is_broken: bool = False


class Slot:
    """Holds the next run for the engine's threads. The first thread that is free takes it at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offer: Offer | None = None
        self._running = 0
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
            while self._offer is None and not self._is_closed:
                self._changed.wait()
            offer, self._offer = self._offer, None
            if offer is None or self._is_closed:
                return None
            offer.alone = offer.alone and not self._running
            self._running += 1
            return offer

    def done(self) -> None:
        """Note that a run which was taken has ended."""
        with self._changed:
            self._running -= 1

    def close(self) -> None:
        """Make every `take` return None."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
