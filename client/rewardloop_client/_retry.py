"""Decides when a call is tried again: exponential backoff with full jitter, inside one deadline for all attempts.

This module does no I/O. A call is a generator of `Send` and `Pause` steps, which each client carries out in its own
way, so that the rules are written once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from rewardloop_client._errors import Cancelled, DeadlineExceeded, Draining, RewardloopError, Unavailable

T = TypeVar("T")

THROTTLE_TOKENS = 100
THROTTLE_RATIO = 0.1
_FULL = 1000 * THROTTLE_TOKENS


class RetryThrottle:
    """Stops retries while most calls fail, so that they do not prolong an outage. This is gRPC's rule (gRFC A6).

    A failure that might pass takes one of 100 tokens, and an answer gives back a tenth of one. While half of the tokens
    or fewer are left, no failed call is tried again. Each client has one throttle, and threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._milli_tokens = _FULL

    def succeeded(self) -> None:
        with self._lock:
            self._milli_tokens = min(_FULL, self._milli_tokens + int(1000 * THROTTLE_RATIO))

    def failed(self) -> bool:
        """Count a failure, and return whether the call may be tried again."""
        with self._lock:
            self._milli_tokens = max(0, self._milli_tokens - 1000)
            return self._milli_tokens > _FULL // 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried, and how long it pauses in between.

    The pause before attempt n+1 is drawn uniformly from [0, min(max_pause_s, first_pause_s * 2^(n-1))] seconds.

    Attributes:
        max_attempts: Number of attempts, the first one included.
        first_pause_s: Longest first pause, in seconds.
        max_pause_s: Longest pause, in seconds.
        throttle: Stops retries while most calls fail; None never does.
        grpc_repeats: gRPC itself has already repeated calls that failed as UNAVAILABLE or CANCELLED.
    """

    max_attempts: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    throttle: RetryThrottle | None = None
    grpc_repeats: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """A step that sends one request. The driver sends the response in, or throws the `RewardloopError` of a failure.

    Attributes:
        path: Full path of the method.
        request: The message to send.
        response_type: Class of the response.
        timeout_s: Seconds for this attempt; None for no bound.
        may_hedge: A second request to another replica is worth its cost.
        on_hedge: Called when a second request is sent.
    """

    path: str
    request: Message
    response_type: type[Message]
    timeout_s: float | None
    may_hedge: bool = False
    on_hedge: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A step that waits for a number of seconds."""

    seconds: float


Steps: TypeAlias = Generator[Send | Pause, Message | None, T]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC: its full path, its request, and the function that reads its response.

    ``safe_to_repeat`` allows retries, and ``may_hedge`` allows a second request beside the first.
    """

    path: str
    request: Message
    response_type: type[Message]
    read: Callable[[Message], T]
    safe_to_repeat: bool = True
    may_hedge: bool = False


class Attempts:
    """The attempts and the time that one call has left. A ``timeout_s`` of None sets no bound on time."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None, *, safe_to_repeat: bool = True) -> None:
        self._policy = policy
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._safe = safe_to_repeat
        self._failures = 0

    def remaining_s(self) -> float | None:
        """Return the seconds that are left. Raises DeadlineExceeded if there are none."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time given to the call ran out")
        return left

    def restart(self) -> None:
        """Count failures from zero again after an answer. The deadline stays."""
        self._failures = 0
        if self._policy.throttle is not None:
            self._policy.throttle.succeeded()

    def pause_after(self, error: RewardloopError, *, was_seen_by_grpc: bool = True) -> float:
        """Return the seconds to wait before the next attempt.

        The pause is at least what the server asks for (RetryInfo or pushback). The first refusal by a server that
        shuts down is the exception, because another replica may answer at once.

        Args:
            error: What the attempt failed with.
            was_seen_by_grpc: False for a failure that gRPC cannot repeat: an item of a batch, or a stream.

        Raises:
            RewardloopError: ``error`` itself, if there is no next attempt.
        """
        policy = self._policy
        self._failures += 1
        has_room = policy.throttle is None or not type(error).retryable or policy.throttle.failed()
        is_repeated_below = policy.grpc_repeats and was_seen_by_grpc and isinstance(error, Unavailable | Cancelled)
        if not (self._safe and error.may_retry and has_room) or is_repeated_below:
            raise error
        if self._failures >= policy.max_attempts:
            raise error
        ceiling = min(policy.max_pause_s, policy.first_pause_s * 2.0 ** (self._failures - 1))
        wish = 0.0 if isinstance(error, Draining) and self._failures == 1 else error.retry_after_s or 0.0
        pause = wish + random.uniform(0, ceiling)
        if self._deadline is not None and time.monotonic() + pause >= self._deadline:
            raise error
        return pause


def steps_of(call: Call[T], policy: RetryPolicy, timeout_s: float | None) -> Steps[T]:
    """Yield the steps of one call: its attempts and the pauses between them. Raises the error of the last attempt."""
    attempts = Attempts(policy, timeout_s, safe_to_repeat=call.safe_to_repeat)
    while True:
        try:
            response = yield Send(
                call.path, call.request, call.response_type, attempts.remaining_s(), may_hedge=call.may_hedge
            )
        except RewardloopError as error:
            yield Pause(attempts.pause_after(error))
            continue
        if response is None:
            raise TypeError("a Send step was answered with nothing")
        attempts.restart()
        return call.read(response)
