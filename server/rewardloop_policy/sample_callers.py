"""The callers who wait for answers, whom the sampling thread answers through the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from rewardloop_policy.policy_text import Answer
from rewardloop_policy.sample_queue import Job
from rewardloop_server.calls.errors import InternalError, PolicyUnavailable
from rewardloop_server.observe.metrics import ServerMetrics


class Callers:
    """The requests that have no answer yet. Any thread may call what is said to be for any.

    Args:
        metrics: Where steps that do not end are counted.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._jobs: set[Job] = set()
        self._has_ended: threading.Event | None = None  # of the last step that did not end in time

    @property
    def is_stuck(self) -> bool:
        """Whether a step does not end."""
        return self._has_ended is not None and not self._has_ended.is_set()

    async def wait(self, job: Job) -> list[Answer]:
        """Return the answer to a request. Raises what it is refused with."""
        self._jobs.add(job)
        try:
            return await job.outcome
        finally:
            self._jobs.discard(job)

    def answer(self, job: Job, outcome: list[Answer] | Exception) -> None:
        """Answer a request. For any thread."""
        _post(job, job.resolve, outcome)

    def overran(self, version: str, culprits: Sequence[Job], has_ended: threading.Event) -> None:
        """Turn all others away until the step of these requests has ended. For any thread.

        The step may end before the event loop hears of it. So the step itself says that it has ended, by the event.
        """
        _post(culprits[0], self._turn_away, version, culprits, has_ended)

    def lost(self, culprits: Sequence[Job]) -> None:
        """Fail these requests, because their step goes on although it was told to stop. For any thread.

        After this error no client asks another worker.
        """
        for job in culprits:
            self.answer(job, InternalError())

    def _turn_away(self, version: str, culprits: Sequence[Job], has_ended: threading.Event) -> None:
        self._metrics.stuck("policy", version)
        self._has_ended = has_ended
        if self.is_stuck:
            for job in self._jobs.difference(culprits):
                job.resolve(stuck())


def stuck() -> PolicyUnavailable:
    """Return the error for requests that come while a step does not end."""
    return PolicyUnavailable("sampling does not end")


def _post(job: Job, note: Callable[..., object], *arguments: object) -> None:
    """Have the event loop call ``note``, unless the sampling thread has outlived it."""
    loop: asyncio.AbstractEventLoop = job.outcome.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(note, *arguments)
