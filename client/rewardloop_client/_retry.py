"""When a call is tried again: exponential backoff with full jitter inside one deadline for all attempts.

No I/O here. A call is a generator of `Send` and `Pause` steps; the sync and the asyncio client each carry the
steps out in their own way, so the rules are written once.
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
    """Ends retries while most calls fail, by gRPC's rule (gRFC A6), so that they do not hold an outage up.

    A failure that might pass takes one of 100 tokens, an answer gives a tenth back; with half of them or fewer, no
    failed call is tried again. One a client. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._milli_tokens = _FULL

    def succeeded(self) -> None:
        with self._lock:
            self._milli_tokens = min(_FULL, self._milli_tokens + int(1000 * THROTTLE_RATIO))

    def failed(self) -> bool:
        """Count a failure; returns whether it may be tried again."""
        with self._lock:
            self._milli_tokens = max(0, self._milli_tokens - 1000)
            return self._milli_tokens > _FULL // 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Before attempt n+1 a pause is drawn from [0, min(max_pause_s, first_pause_s * 2^(n-1))] seconds.

    ``max_attempts`` counts the first try. ``throttle``: None for none. ``grpc_repeats``: UNAVAILABLE and
    CANCELLED were already repeated below, by gRPC.
    """

    max_attempts: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0
    throttle: RetryThrottle | None = None
    grpc_repeats: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send one request, answer with the response. The driver throws the `RewardloopError` of a failure in.

    ``timeout_s``: seconds for this attempt; None: no bound. ``may_hedge``: a second request is worth its cost;
    ``on_hedge`` is called when one is sent.
    """

    path: str
    request: Message
    response_type: type[Message]
    timeout_s: float | None
    may_hedge: bool = False
    on_hedge: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait so many seconds."""

    seconds: float


Steps: TypeAlias = Generator[Send | Pause, Message | None, T]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One RPC: its full path, request, and how its response is read.

    ``safe_to_repeat`` allows retries, ``may_hedge`` a second request beside the first.
    """

    path: str
    request: Message
    response_type: type[Message]
    read: Callable[[Message], T]
    safe_to_repeat: bool = True
    may_hedge: bool = False


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
        """An answer came: count failures from zero again; the deadline stays."""
        self._failures = 0
        if self._policy.throttle is not None:
            self._policy.throttle.succeeded()

    def pause_after(self, error: RewardloopError, *, was_seen_by_grpc: bool = True) -> float:
        """Seconds to wait before the next attempt. Raises ``error`` when there is no next attempt.

        ``was_seen_by_grpc``: False for what gRPC cannot repeat: an item of a batch, a stream.

        The server's wish (RetryInfo or pushback) is the least that is waited, but for a first refusal by a server
        that is going away: another replica may answer at once.
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
    """The steps of one call: sends, and pauses between them. Raises what the last attempt failed with."""
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
