"""What bench saw in one window of time."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

from rewardloop.v1 import reward_pb2
from rewardloop_client import RewardloopError


@dataclass(slots=True)
class Seen:
    """What was due between ``start`` and ``end`` (`time.perf_counter`), and how it went.

    ``latencies_s``, ``refused_s``: of requests due in the window that were answered or failed as a whole, from when
    each was due. ``late_s``: how long after it was due each request of an open loop was sent. Sums of `ScoreTimings`
    are over ``groups``. ``cpu_s``: of this process.
    ``requests``, ``responses``, ``tokens``: what was worked off in the window. A request that is only partly inside
    counts by the part of its time that is: answers come in bursts, a batch at a time, and a burst just inside or
    outside would move a short window's throughput.
    """

    start: float
    end: float
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    refused_s: array[float] = field(default_factory=lambda: array("d"))
    late_s: array[float] = field(default_factory=lambda: array("d"))
    requests: float = 0.0
    responses: float = 0.0
    tokens: float = 0.0
    groups: int = 0
    queue_us: int = 0
    tokenize_us: int = 0
    run_us: int = 0
    run_rows: int = 0
    run_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0

    def take(self, due: float, responses: list[reward_pb2.ScoreResponse], failures: list[RewardloopError]) -> None:
        """One request's outcome, come just now."""
        now = time.perf_counter()
        inside = min(now, self.end) - max(due, self.start)
        if responses and inside > 0:
            share = inside / (now - due)
            self.requests += share
            for response in responses:
                self.responses += share * len(response.scores)
                self.tokens += share * sum(score.token_count for score in response.scores)
        if not self.start <= due < self.end:
            return
        for error in failures:
            self.failures[error.reason or type(error).__name__] += 1
        (self.latencies_s if responses else self.refused_s).append(now - due)
        for response in responses:
            timings = response.timings
            self.groups += 1
            self.queue_us += timings.queue_us
            self.tokenize_us += timings.tokenize_us
            self.run_us += timings.run_us
            self.run_rows += timings.run_rows
            self.run_tokens += timings.run_tokens
            self.versions[response.model_version.version] += 1

    def now_s(self) -> float:
        """Seconds into the window; negative during the warm-up."""
        return time.perf_counter() - self.start
