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
    """What was due or answered between ``start`` and ``end`` (`time.perf_counter`).

    ``latencies_s``: of answered requests that were due in the window, from when each was due. ``late_s``: how long
    after it was due each request of an open loop was sent. ``answered``, ``groups``, ``responses``, ``tokens``: what
    was answered inside the window. Sums of `ScoreTimings` are over ``groups``. ``cpu_s``: of this process.
    """

    start: float
    end: float
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    late_s: array[float] = field(default_factory=lambda: array("d"))
    due: int = 0
    answered: int = 0
    groups: int = 0
    responses: int = 0
    tokens: int = 0
    queue_us: int = 0
    tokenize_us: int = 0
    run_us: int = 0
    run_rows: int = 0
    run_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    refused_s: array[float] = field(default_factory=lambda: array("d"))
    versions: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0

    def take(self, due: float, responses: list[reward_pb2.ScoreResponse], failures: list[RewardloopError]) -> None:
        """One request's outcome, come just now."""
        now = time.perf_counter()
        if self.start <= due < self.end:
            for error in failures:
                self.failures[error.reason or type(error).__name__] += 1
            if responses:
                self.latencies_s.append(now - due)
            else:
                self.refused_s.append(now - due)
        if not (responses and self.start <= now < self.end):
            return
        self.answered += 1
        for response in responses:
            timings = response.timings
            self.groups += 1
            self.responses += len(response.scores)
            self.tokens += sum(score.token_count for score in response.scores)
            self.queue_us += timings.queue_us
            self.tokenize_us += timings.tokenize_us
            self.run_us += timings.run_us
            self.run_rows += timings.run_rows
            self.run_tokens += timings.run_tokens
            self.versions[response.model_version.version] += 1

    def now_s(self) -> float:
        """Seconds into the window; negative during the warm-up."""
        return time.perf_counter() - self.start
