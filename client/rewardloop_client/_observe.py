"""Tells an observer how each call ended, in both clients."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from rewardloop_client._errors import RewardloopError
from rewardloop_client._retry import Send, Steps

T = TypeVar("T")

log = logging.getLogger("rewardloop_client")


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """One call that ended.

    Attributes:
        method: Such as "rewardloop.v1.RewardService/Score".
        code: Name of the gRPC code.
        reason: The error's reason, or an empty text without one.
        attempts: Number of requests that were sent, without hedges.
        hedges: Number of second requests to another replica.
        seconds: Time of the call with all attempts and pauses; for a stream, until its iterator was closed.
    """

    method: str
    code: str
    reason: str
    attempts: int
    hedges: int
    seconds: float


Observer: TypeAlias = Callable[[FinishedCall], None]


class _Life:
    """Counts the requests of one call until it ends."""

    def __init__(self, path: str, observer: Observer) -> None:
        self._method = path.removeprefix("/")
        self._observer = observer
        self._started = time.monotonic()
        self.attempts = 0
        self.hedges = 0

    def hedged(self) -> None:
        self.hedges += 1

    def end(self, error: BaseException | None) -> None:
        code, reason = "OK", ""
        if isinstance(error, RewardloopError):
            code, reason = error.code.name, error.reason
        elif isinstance(error, GeneratorExit | asyncio.CancelledError | KeyboardInterrupt):
            code = "CANCELLED"
        elif error is not None:
            code = "UNKNOWN"
        seconds = time.monotonic() - self._started
        try:
            self._observer(FinishedCall(self._method, code, reason, self.attempts, self.hedges, seconds))
        except Exception:  # an observer must not fail the call that it watches
            log.exception("the observer of a call failed")


def observed(steps: Steps[T], observer: Observer | None) -> Steps[T]:
    """Return the same steps, and tell ``observer`` how they ended. Steps that send nothing are not a call."""
    return steps if observer is None else _observed(steps, observer)


def _observed(steps: Steps[T], observer: Observer) -> Steps[T]:
    life: _Life | None = None
    failure: BaseException | None = None
    try:
        step = next(steps)
        while True:
            if isinstance(step, Send):
                life = life or _Life(step.path, observer)
                life.attempts += 1
                step = replace(step, on_hedge=life.hedged)
            try:
                answer = yield step
            except RewardloopError as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException as error:
        failure = error
        raise
    finally:
        if life is not None:
            life.end(failure)


@contextmanager
def observing(path: str, observer: Observer | None) -> Iterator[None]:
    """Tell ``observer`` how a stream ended: by what the block raises, or as CANCELLED if it is left early."""
    if observer is None:
        yield
        return
    life = _Life(path, observer)
    life.attempts = 1
    try:
        yield
    except BaseException as error:
        life.end(error)
        raise
    life.end(None)
