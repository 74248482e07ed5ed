"""Collects what bench sees in one window of time."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

from rewardloop.v1 import reward_pb2
from rewardloop_client import RewardloopError


@dataclass(slots=True)
class Seen:
    """The outcomes of a window from ``start`` to ``end`` (`time.perf_counter`).

    Attributes:
        latencies_s: Seconds from when a request was due until it was answered, for requests due in the window.
        refused_s: The same for requests that failed as a whole.
        late_s: Seconds between when each request of an open loop was due and when it was sent.
        requests: Requests that were worked off in the window. A request that lies partly inside counts by that part of
            its time. Answers come in bursts, a batch at a time, and a burst just inside or outside the window would
            otherwise change the throughput of a short one.
        responses: Responses that were scored, counted in the same way.
        tokens: Tokens that were scored, counted in the same way.
        groups: Number of groups, over which the sums of `ScoreTimings` run.
        cpu_s: CPU seconds of this process.
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
        """Note the outcome of one request, which has arrived just now."""
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
        """Return the seconds since the window began; negative during the warm-up."""
        return time.perf_counter() - self.start
