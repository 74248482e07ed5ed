"""Quotas: how much a caller may ask for, as token buckets that may run into debt, and as requests in flight.

A request's cost is known only after it was read. So a request is let in if every bucket holds at least one unit, and
then takes its cost. One large request may overdraw a bucket; its caller waits until the rate has paid that back. So
the rate holds over time, and no request is too large to be let in at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rewardloop_server.calls.errors import QuotaSpent
from rewardloop_server.calls.vocabulary import QuotaName

_IN_FLIGHT_RETRY_MS = 100


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of one caller; None means no bound. ``burst_s`` is how many seconds' worth may be taken at once."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    bytes_per_s: float | None = None
    concurrent: int | None = None
    burst_s: float = 2.0


class Bucket:
    """A token bucket that fills at ``rate`` a second, up to ``burst_s`` seconds' worth. `take` may overdraw it."""

    def __init__(self, rate: float, burst_s: float, now: float) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate * burst_s)
        self._level = self._capacity
        self._at = now

    @property
    def state(self) -> tuple[float, float]:
        """What is in it, and the time at which that was so."""
        return self._level, self._at

    @state.setter
    def state(self, state: tuple[float, float]) -> None:
        self._level, self._at = state

    def wait_s(self, now: float) -> float:
        """Return the seconds until something may be taken; 0 if it may be taken now."""
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1.0 - self._level) / self._rate)

    def take(self, cost: float) -> None:
        """Take ``cost`` units, even if the bucket holds fewer."""
        self._level -= cost


class Allowance:
    """What one caller has left. It outlives a change of the callers' file that leaves the quota as it is."""

    def __init__(self, caller: str, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self.quota = quota
        self._caller = caller
        self._clock = clock
        self._in_flight = 0
        now = clock()
        rates: dict[QuotaName, float | None] = {
            "requests": quota.requests_per_s,
            "tokens": quota.tokens_per_s,
            "bytes": quota.bytes_per_s,
        }
        self._buckets = {name: Bucket(rate, quota.burst_s, now) for name, rate in rates.items() if rate is not None}

    def enter(self) -> tuple[QuotaName, QuotaSpent] | None:
        """Let one request in until `leave`, or return the quota that refuses it and the error."""
        if self.quota.concurrent is not None and self._in_flight >= self.quota.concurrent:
            message = f"{self._caller} has {self._in_flight} requests in flight, which is its quota"
            return "concurrent", QuotaSpent(message, retry_after_ms=_IN_FLIGHT_RETRY_MS)
        now = self._clock()
        for name, bucket in self._buckets.items():
            if (wait_s := bucket.wait_s(now)) > 0:
                message = f"{self._caller} has spent its quota of {name} a second"
                return name, QuotaSpent(message, retry_after_ms=max(1, round(wait_s * 1000)))
        if (requests := self._buckets.get("requests")) is not None:
            requests.take(1)
        self._in_flight += 1
        return None

    def leave(self, _: object = None) -> None:
        """End a request that `enter` let in. The argument is a task, so that this can be a task's callback."""
        self._in_flight -= 1

    @property
    def is_bounded(self) -> bool:
        """Whether any quota of this caller has a bound."""
        return bool(self._buckets) or self.quota.concurrent is not None

    @property
    def measures(self) -> bool:
        """Whether a request's content counts, in tokens or bytes."""
        return "tokens" in self._buckets or "bytes" in self._buckets

    def take_message(self) -> None:
        """Count one request of a stream."""
        if (requests := self._buckets.get("requests")) is not None:
            requests.take(1)

    def take(self, tokens: int, size: int) -> None:
        """Take the cost of a request that was let in."""
        if (bucket := self._buckets.get("tokens")) is not None:
            bucket.take(tokens)
        if (bucket := self._buckets.get("bytes")) is not None:
            bucket.take(size)

    def pause_s(self) -> float:
        """Return the seconds for which a stream must not be read, so that it keeps to the caller's rates."""
        now = self._clock()
        return max((bucket.wait_s(now) for bucket in self._buckets.values()), default=0.0)
