"""Queues requests for the policy, and samples together what came while the last batch ran."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from rewardloop_policy.policy_model import Answer, PolicyModel
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import DeadlinePassed, NotLoadable, QueueFull
from rewardloop_server.calls.vocabulary import SAMPLING_LANE, Stage
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Job:
    """One request to one version. ``deadline`` is on the monotonic clock."""

    policy: PolicyModel
    request: SampleRequest
    deadline: float | None
    outcome: asyncio.Future[list[Answer]]
    enqueued: float = field(default_factory=time.monotonic)

    def is_abandoned(self) -> bool:
        """Return whether nobody waits for the answer any more. Called from the sampling thread, too."""
        return self.outcome.done() or (self.deadline is not None and self.deadline <= time.monotonic())


class SampleBatcher:
    """Serves requests in the order in which they come. Torch runs in one thread of its own, and a batch by one version.

    Args:
        max_batch_rows: Most candidates in a batch, unless a single request has more.
        max_queue_rows: Most candidates that wait.
        metrics: Where the queue and the batches are measured.
    """

    def __init__(self, *, max_batch_rows: int, max_queue_rows: int, metrics: ServerMetrics) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._queue: deque[_Job] = deque()
        self._queued_rows = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")

    async def answer(self, policy: PolicyModel, request: SampleRequest, deadline: float | None) -> list[Answer]:
        """Return the request's candidates. The caller must keep ``policy`` alive until then.

        Args:
            policy: The version that answers.
            request: What to sample.
            deadline: When the caller stops waiting, on the monotonic clock; None for never.

        Raises:
            QueueFull: The queue has no room.
            DeadlinePassed: The deadline passed while the request waited or was sampled.
            NotLoadable: The model failed on the request.
        """
        if self._queue and self._queued_rows + request.candidates > self._max_queue_rows:
            raise QueueFull(f"the queue holds {self._queued_rows} of {self._max_queue_rows} candidates")
        job = _Job(policy, request, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._queued_rows += request.candidates
        self._arrived.set()
        return await job.outcome

    def set_gauges(self) -> None:
        """Set the queue's gauges."""
        waited = time.monotonic() - self._queue[0].enqueued if self._queue else 0.0
        self._metrics.queue_rows.labels(lane=SAMPLING_LANE).set(self._queued_rows)
        self._metrics.queue_saturation_ratio.labels(lane=SAMPLING_LANE).set(self._queued_rows / self._max_queue_rows)
        self._metrics.queue_oldest_wait_seconds.labels(lane=SAMPLING_LANE).set(waited)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self._arrived.wait()
            batch = self._take()
            if batch:
                await self._sample(batch)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[_Job]:
        """Return the next batch. Requests of callers that went away are skipped; requests past their deadline fail."""
        batch: list[_Job] = []
        rows, now = 0, time.monotonic()
        while self._queue:
            job = self._queue[0]
            is_past = job.deadline is not None and job.deadline <= now
            fits = rows + job.request.candidates <= self._max_batch_rows
            if not job.outcome.done() and not is_past and batch and (job.policy is not batch[0].policy or not fits):
                return batch
            self._queue.popleft()
            self._queued_rows -= job.request.candidates
            if job.outcome.done():
                continue
            if is_past:
                job.outcome.set_exception(DeadlinePassed("the deadline passed while the request was queued"))
                continue
            batch.append(job)
            rows += job.request.candidates
        self._arrived.clear()
        return batch

    async def _sample(self, batch: Sequence[_Job]) -> None:
        started = time.monotonic()
        for job in batch:
            self._observe("queue", started - job.enqueued)
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread,
                batch[0].policy.answer,
                [job.request for job in batch],
                lambda request: batch[request].is_abandoned(),
            )
        except (ArithmeticError, RuntimeError, ValueError, IndexError) as error:
            await self._fail(batch, error)
            return
        self._metrics.batch_rows.observe(sum(job.request.candidates for job in batch))
        self._metrics.batch_tokens.observe(sum(a.token_count for group in answers for a in group))
        ended = time.monotonic()
        for job, group in zip(batch, answers, strict=True):
            self._observe("run", ended - started)
            self._observe("total", ended - job.enqueued)
            if job.outcome.done():
                continue
            if job.deadline is not None and job.deadline <= ended:
                job.outcome.set_exception(DeadlinePassed("the deadline passed while the answer was sampled"))
            else:
                job.outcome.set_result(group)

    async def _fail(self, batch: Sequence[_Job], error: Exception) -> None:
        """Fail a request on which the model failed. The requests of a larger batch are tried again one by one."""
        if len(batch) > 1:
            for job in batch:
                await self._sample([job])
            return
        job, version = batch[0], batch[0].policy.manifest.version
        log.error("sampling failed", version=version, exc_info=error)
        if not job.outcome.done():
            job.outcome.set_exception(NotLoadable(f"policy {version} failed on this request"))

    def _observe(self, stage: Stage, seconds: float) -> None:
        self._metrics.stage_seconds.labels(stage=stage, lane=SAMPLING_LANE).observe(seconds)
