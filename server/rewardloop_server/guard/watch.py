"""watch: notices a run or a load that does not end, tells it to stop, and has the process end if it goes on.

A graph can compute for ever, also on one text only, and then holds its thread in native code. Such a thread cannot be
ended from outside. ONNX Runtime looks at a flag between two nodes; if that does not help, only a new process does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from rewardloop_server.guard.last_resort import end_now

log = structlog.get_logger()

_EVERY_S = 0.2
# An event loop that does not turn for so long is held by native code, and answers no signal either.
_LOOP_LIMIT_S = 30.0
# The process itself may have stood still, under SIGSTOP or on a paused machine. Such a pause counts as this much.
_LONGEST_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class RunBounds:
    """How long native work may take.

    Attributes:
        least_s: A run may take so many seconds, however short it should be.
        factor: It may also take its estimated time, multiplied by this.
        grace_s: Seconds for which work that was told to stop may go on.
        broken_s: For so many seconds a version that no longer runs is tried again, before the process ends.
    """

    least_s: float = 8.0
    factor: float = 20.0
    grace_s: float = 5.0
    broken_s: float = 5.0

    def run_s(self, estimated_s: float) -> float:
        """Return the most seconds of a run that is estimated to take ``estimated_s``."""
        return max(self.least_s, self.factor * estimated_s)


@dataclass(slots=True, eq=False)
class Work:
    """Native work of one thread.

    Attributes:
        name: What it is, for the log.
        version: The version that does it.
        limit_s: After so many seconds it is told to stop.
        stop: Tells it to stop. Called in the watching thread.
        on_overrun: Called in the watching thread before it is told to stop.
        on_lost: Called in the watching thread if it goes on all the same.
        is_overrun: It was told to stop.
    """

    name: str
    version: str
    limit_s: float
    stop: Callable[[], None]
    on_overrun: Callable[[], None] = lambda: None
    on_lost: Callable[[], object] = lambda: None
    is_overrun: bool = field(default=False, init=False)


class LostThread(Exception):
    """Raised when work that was told to stop goes on. Its thread is lost, and the process must end."""


class Watch:
    """Watches the work of any number of threads, from one thread of its own.

    `begin` and `end` cost one assignment each. `run` must be running for anything to be watched.

    Args:
        grace_s: Seconds for which work that was told to stop may go on.
    """

    def __init__(self, grace_s: float = 5.0) -> None:
        self._grace_s = grace_s
        self._work: dict[int, Work | None] = {}  # by thread
        self._closed = threading.Event()
        self._turns = 0  # of the event loop, about one a second

    def begin(self, work: Work) -> None:
        """Watch this work of the calling thread from now on, instead of what it did before."""
        self._work[threading.get_ident()] = work

    def end(self) -> None:
        """Note that the calling thread's work has ended."""
        self._work[threading.get_ident()] = None

    @contextmanager
    def over(self, work: Work) -> Iterator[None]:
        """Watch the block as ``work``."""
        self.begin(work)
        try:
            yield
        finally:
            self.end()

    @property
    def has_work(self) -> bool:
        """Whether any thread works. Its thread would keep the process from ending."""
        return any(work is not None for work in self._work.values())

    async def run(self) -> None:
        """Watch until cancelled, the event loop included: if it stands still for long, the process ends at once.

        Raises LostThread as soon as work goes on for the grace after it was told to stop.
        """
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[None] = loop.create_future()

        def lose(work: Work) -> None:
            loop.call_soon_threadsafe(_fail, lost, LostThread(f"{work.name} of version {work.version} does not stop"))

        threading.Thread(target=self._patrol, args=(lose,), name="watch", daemon=True).start()
        try:
            while True:
                self._turns += 1
                await asyncio.wait([lost], timeout=1.0)
                if lost.done():
                    lost.result()
        finally:
            self._closed.set()

    def _patrol(self, lose: Callable[[Work], None]) -> None:
        lasted: dict[Work, float] = {}
        before = time.monotonic()
        turns, stands_s = self._turns, 0.0
        while not self._closed.wait(_EVERY_S):
            now = time.monotonic()
            step_s, before = min(now - before, _LONGEST_STEP_S), now
            turns, stands_s = self._turns, 0.0 if turns != self._turns else stands_s + step_s
            if stands_s > _LOOP_LIMIT_S:
                log.critical("the event loop stands still, so the process ends", seconds=round(stands_s, 1))
                end_now(1)
            present = [work for work in list(self._work.values()) if work is not None]
            lasted = {work: lasted.get(work, -step_s) + step_s for work in present}
            for work, seconds in lasted.items():
                if not work.is_overrun and seconds > work.limit_s:
                    log.error("told to stop", work=work.name, version=work.version, seconds=round(seconds, 1))
                    work.is_overrun = True
                    work.on_overrun()  # before it can end
                    work.stop()
                elif work.is_overrun and seconds > work.limit_s + self._grace_s:
                    log.critical(
                        "does not stop, so the process ends",
                        work=work.name,
                        version=work.version,
                        seconds=round(seconds, 1),
                    )
                    work.on_lost()
                    lose(work)
                    return


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
