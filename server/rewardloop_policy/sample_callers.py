"""Those who wait for answers. The sampling thread answers them through the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rewardloop_policy.policy_text import Answer
from rewardloop_policy.sample_queue import Job
from rewardloop_server.calls.errors import InternalError, PolicyUnavailable
from rewardloop_server.observe.metrics import ServerMetrics


class Callers:
    """The requests that have no answer yet. Any thread may call what is said to be for any.

    Args:
        metrics: Where steps that do not end are counted.

    Attributes:
        is_stuck: Whether a step does not end.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self.is_stuck = False
        self._metrics = metrics
        self._jobs: set[Job] = set()

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

    def overran(self, version: str, culprits: Sequence[Job]) -> None:
        """Turn all others away, because the step of these requests does not end. For any thread."""
        _post(culprits[0], self._turn_away, version, culprits)

    def lost(self, culprits: Sequence[Job]) -> None:
        """Fail these requests, because their step goes on although it was told to stop. For any thread.

        After this error no client asks another worker.
        """
        for job in culprits:
            self.answer(job, InternalError())

    def recovered(self, job: Job) -> None:
        """Note that the step of this request has ended, so that requests are taken again. For any thread."""
        _post(job, self._recover)

    def _turn_away(self, version: str, culprits: Sequence[Job]) -> None:
        self.is_stuck = True
        self._metrics.stuck("policy", version)
        for job in self._jobs.difference(culprits):
            job.resolve(stuck())

    def _recover(self) -> None:
        self.is_stuck = False


def stuck() -> PolicyUnavailable:
    """Return the error for requests that come while a step does not end."""
    return PolicyUnavailable("sampling does not end")


def _post(job: Job, note: Callable[..., object], *arguments: object) -> None:
    """Have the event loop call ``note``, unless the sampling thread has outlived it."""
    loop: asyncio.AbstractEventLoop = job.outcome.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(note, *arguments)
