"""Bounds how often each token calls. The services' own quotas are for a caller with all its tokens."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from rewardloop.formats.tokens import is_publishable

# Of this many tokens the latest are remembered, so that made-up ones take no memory.
_MOST_TOKENS = 20_000
_BURST_S = 5.0


class Rates:
    """A bucket for each token, which holds five seconds' worth and at least ten requests.

    Args:
        per_s: Requests a second with one token; 0 bounds none.
        publishable_per_s: The same with a publishable token.
        clock: Seconds that never go back.
    """

    def __init__(self, per_s: float, publishable_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._publishable_per_s = publishable_per_s
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # level and when it was so

    def wait_s(self, token: str) -> float:
        """Take one request of the token; return 0, or the seconds to wait if it has none left."""
        rate = self._publishable_per_s if is_publishable(token) else self._per_s
        if not rate or not token:
            return 0.0
        key = hashlib.blake2b(token.encode(), digest_size=16).digest()
        now, most = self._clock(), max(10.0, _BURST_S * rate)
        level, at = self._buckets.pop(key, (most, now))
        level = min(most, level + (now - at) * rate)
        is_let_in = level >= 1
        self._buckets[key] = (level - 1 if is_let_in else level, now)
        if len(self._buckets) > _MOST_TOKENS:
            self._buckets.popitem(last=False)
        return 0.0 if is_let_in else math.ceil(1000 * (1 - level) / rate) / 1000
