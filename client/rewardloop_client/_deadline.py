"""One deadline for all calls that an application makes for one request of its own.

The clients bound every call by it. An asyncio task inherits the deadline of the place where it is created, and so does
`asyncio.to_thread`. Work for other threads is wrapped in `keep_deadline`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# gRPC counts nanoseconds in 64 bits: a deadline some 290 years away has passed already.
_FOR_EVER_S = 1e9

_expiry: ContextVar[float | None] = ContextVar("rewardloop_deadline", default=None)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Bound the time that all calls inside the block may take together.

    What is left of it becomes the gRPC deadline of each call. The nearest of nested deadlines applies. In a gRPC
    servicer, `deadline(context.time_remaining())` passes on the caller's deadline if there is one.

    Args:
        seconds: Time for all calls. None or infinity sets no deadline; a negative time has passed already.

    Raises:
        ValueError: ``seconds`` is NaN.
    """
    if seconds is not None and math.isnan(seconds):
        raise ValueError("seconds: is not a number")
    outer = _expiry.get()
    own = None if seconds is None or seconds >= _FOR_EVER_S else time.monotonic() + seconds
    nearest = min((expiry for expiry in (outer, own) if expiry is not None), default=None)
    token = _expiry.set(nearest)
    try:
        yield
    finally:
        _expiry.reset(token)


def time_left() -> float | None:
    """Return the seconds until the deadline, 0 after it has passed, and None if there is none."""
    expiry = _expiry.get()
    return None if expiry is None else max(0.0, expiry - time.monotonic())


def keep_deadline(work: Callable[P, T]) -> Callable[P, T]:
    """Return ``work`` bound to the present deadline, for another thread: ``pool.map(keep_deadline(ask), prompts)``."""
    expiry = _expiry.get()

    @functools.wraps(work)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        token = _expiry.set(expiry)
        try:
            return work(*args, **kwargs)
        finally:
            _expiry.reset(token)

    return kept


def checked(timeout_s: float) -> float:
    """Return ``timeout_s``. Raises TypeError if it is no number, and ValueError if it is negative or NaN."""
    if not isinstance(timeout_s, Real):
        raise TypeError(f"timeout_s: is {type(timeout_s).__name__}, not a number of seconds (int or float)")
    if not timeout_s >= 0:
        raise ValueError(f"timeout_s: is {timeout_s}, not a number of seconds from 0 on")
    return timeout_s


def bounded(timeout_s: float | None) -> float | None:
    """Return the smaller of a call's own seconds and what is left of the deadline; None if neither has an end.

    Raises:
        TypeError: ``timeout_s`` is no number.
        ValueError: ``timeout_s`` is negative or NaN.
    """
    if timeout_s is not None and checked(timeout_s) >= _FOR_EVER_S:
        timeout_s = None
    left = time_left()
    return timeout_s if left is None else left if timeout_s is None else min(timeout_s, left)
