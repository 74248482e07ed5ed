"""When a call is tried again: exponential backoff with full jitter inside one deadline for all attempts.

No I/O here. A call is a generator of `Send` and `Pause` steps; the sync and the asyncio client each carry the
steps out in their own way, so the rules are written once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from rewardloop_client._errors import DeadlineExceeded, RewardloopError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Before attempt n+1 a pause is drawn from [0, min(max_pause_s, first_pause_s * 2^(n-1))] seconds.

    ``max_attempts`` counts the first try.
    """

    max_attempts: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send one request, answer with the response. The driver throws the `RewardloopError` of a failure in.

    ``timeout_s``: seconds for this attempt; None: no bound.
    """

    path: str
    request: Message
    response_type: type[Message]
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait so many seconds."""

    seconds: float


Steps: TypeAlias = Generator[Send | Pause, Message | None, T]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC: its full path, request, and how its response is read. ``safe_to_repeat`` allows retries."""

    path: str
    request: Message
    response_type: type[Message]
    read: Callable[[Message], T]
    safe_to_repeat: bool = True


class Attempts:
    """The budget of one call: attempts and time. ``timeout_s`` None: no bound on time."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None, *, safe_to_repeat: bool = True) -> None:
        self._policy = policy
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._safe = safe_to_repeat
        self._failures = 0

    def remaining_s(self) -> float | None:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time given to the call ran out")
        return left

    def restart(self) -> None:
        """Count failures from zero again; the deadline stays."""
        self._failures = 0

    def pause_after(self, error: RewardloopError) -> float:
        """Seconds to wait before the next attempt. Raises ``error`` when there is no next attempt.

        The server's wish (RetryInfo or pushback) is the least that is waited.
        """
        self._failures += 1
        if not (self._safe and error.may_retry) or self._failures >= self._policy.max_attempts:
            raise error
        ceiling = min(self._policy.max_pause_s, self._policy.first_pause_s * 2.0 ** (self._failures - 1))
        pause = (error.retry_after_s or 0.0) + random.uniform(0, ceiling)
        if self._deadline is not None and time.monotonic() + pause >= self._deadline:
            raise error
        return pause


def steps_of(call: Call[T], policy: RetryPolicy, timeout_s: float | None) -> Steps[T]:
    """The steps of one call: sends, and pauses between them. Raises what the last attempt failed with."""
    attempts = Attempts(policy, timeout_s, safe_to_repeat=call.safe_to_repeat)
    while True:
        try:
            response = yield Send(call.path, call.request, call.response_type, attempts.remaining_s())
        except RewardloopError as error:
            yield Pause(attempts.pause_after(error))
            continue
        if response is None:
            raise TypeError("a Send step was answered with nothing")
        return call.read(response)
