"""The requests that wait to be sampled, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rewardloop_policy.policy_model import PolicyModel
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import QueueFull


@dataclass(slots=True, eq=False)
class Job:
    """One request to one version.

    Attributes:
        policy: The version.
        request: What to sample.
        deadline: When its caller stops waiting, on the monotonic clock; None for never.
        outcome: What its caller waits for. Only the event loop sets it.
        speech: Where the texts stop, and who hears them.
        enqueued: When it came.
        joined: When its sampling began; 0 while it waits.
    """

    policy: PolicyModel
    request: SampleRequest
    deadline: float | None
    outcome: asyncio.Future[list[Answer]]
    speech: Speech
    enqueued: float = field(default_factory=time.monotonic)
    joined: float = 0.0

    def is_abandoned(self) -> bool:
        """Return whether nobody waits for the answer any more. Any thread may ask."""
        return self.outcome.done() or (self.deadline is not None and self.deadline <= time.monotonic())

    def resolve(self, outcome: list[Answer] | Exception) -> None:
        """Answer the caller, unless it is answered. For the event loop's thread."""
        if self.outcome.done():
            return
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class SampleQueue:
    """A bounded queue between the event loop and the sampling thread.

    Args:
        max_rows: Most candidates that wait.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._rows = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def rows(self) -> int:
        """Candidates that wait."""
        return self._rows

    @property
    def waited_s(self) -> float:
        """How long the first one has waited, in seconds."""
        with self._lock:
            return time.monotonic() - self._jobs[0].enqueued if self._jobs else 0.0

    def put(self, job: Job) -> None:
        """Append a request. Raises QueueFull, but never if nothing waits."""
        rows = job.request.candidates
        with self._lock:
            if self._jobs and self._rows + rows > self.max_rows:
                raise QueueFull(f"the queue holds {self._rows} of {self.max_rows} candidates")
            self._jobs.append(job)
            self._rows += rows

    def take(self, fits: Callable[[Job], bool]) -> Job | None:
        """Take the first request, whether or not somebody waits for it; None if there is none or it does not fit.

        No request overtakes the first one. An abandoned one always fits.
        """
        with self._lock:
            if not self._jobs or not (self._jobs[0].is_abandoned() or fits(self._jobs[0])):
                return None
            job = self._jobs.popleft()
            self._rows -= job.request.candidates
            return job
