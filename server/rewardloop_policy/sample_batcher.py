"""Queues requests for the policy, and samples together what came while the last batch ran.

A step of a batch that does not end cannot be stopped, because it is in torch. Meanwhile every request is turned away,
and if the step goes on, the process ends (`Watch`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from rewardloop_policy.policy_model import PolicyModel
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.errors import DeadlinePassed, InternalError, NotLoadable, PolicyUnavailable, QueueFull
from rewardloop_server.calls.vocabulary import SAMPLING_LANE, Stage
from rewardloop_server.guard.watch import RunBounds, Watch, Work
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()

# A step is watched anew once the last one has lasted this long: many steps are shorter.
_STEP_S = 0.2


class _Overrun(RuntimeError):
    """Raised for a batch of which a step did not end in time."""


_BOUNDS = RunBounds()


@dataclass(slots=True, eq=False)
class _Job:
    """One request to one version. ``deadline`` is on the monotonic clock."""

    policy: PolicyModel
    request: SampleRequest
    deadline: float | None
    outcome: asyncio.Future[list[Answer]]
    speech: Speech
    enqueued: float = field(default_factory=time.monotonic)

    def is_abandoned(self) -> bool:
        """Return whether nobody waits for the answer any more. Called from the sampling thread, too."""
        return self.outcome.done() or (self.deadline is not None and self.deadline <= time.monotonic())


class _Steps:
    """The steps of a batch, in the sampling thread. A step ends when the next one asks who is still waited for."""

    def __init__(
        self,
        batch: Sequence[_Job],
        watch: Watch,
        limit_s: float,
        *,
        on_overrun: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._watch = watch
        self._limit_s = limit_s
        self._on_overrun = on_overrun
        self._on_lost = on_lost
        self._began = 0.0
        self.is_stopped = False

    def begin(self) -> None:
        """Watch from here on."""
        self._began = time.monotonic()
        version = self._batch[0].policy.manifest.version
        self._watch.begin(Work("step", version, self._limit_s, self._stop, self._on_overrun, self._on_lost))

    def is_abandoned(self, request: int) -> bool:
        """Return whether the request's candidates are to end as they are."""
        if not self.is_stopped and time.monotonic() - self._began > _STEP_S:
            self.begin()
        return self.is_stopped or self._batch[request].is_abandoned()

    def _stop(self) -> None:
        self.is_stopped = True


class SampleBatcher:
    """Serves requests in the order in which they come. Torch runs in one thread of its own, and a batch by one version.

    Args:
        max_batch_rows: Most candidates in a batch, unless a single request has more.
        max_queue_rows: Most candidates that wait.
        metrics: Where the queue and the batches are measured.
        watch: Notices steps that do not end.
        bounds: How long a step may take.
    """

    def __init__(
        self,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        metrics: ServerMetrics,
        watch: Watch | None = None,
        bounds: RunBounds = _BOUNDS,
    ) -> None:
        self._watch = watch or Watch()
        self._bounds = bounds
        self._is_stuck = False
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._queue: deque[_Job] = deque()
        self._queued_rows = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")

    @property
    def is_stuck(self) -> bool:
        """Whether a step does not end."""
        return self._is_stuck

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        return not self._is_stuck

    async def answer(
        self, policy: PolicyModel, request: SampleRequest, deadline: float | None, speech: Speech | None = None
    ) -> list[Answer]:
        """Return the request's candidates. The caller must keep ``policy`` alive until then.

        Args:
            policy: The version that answers.
            request: What to sample.
            deadline: When the caller stops waiting, on the monotonic clock; None for never.
            speech: Where the texts stop, and who hears them in the sampling thread.

        Raises:
            QueueFull: The queue has no room.
            DeadlinePassed: The deadline passed while the request waited or was sampled.
            NotLoadable: The model failed on the request.
            PolicyUnavailable: A step does not end.
        """
        if self._is_stuck:
            raise _stuck()
        if self._queue and self._queued_rows + request.candidates > self._max_queue_rows:
            raise QueueFull(f"the queue holds {self._queued_rows} of {self._max_queue_rows} candidates")
        job = _Job(policy, request, deadline, asyncio.get_running_loop().create_future(), speech or Speech())
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
                self._thread, self._answers, batch, asyncio.get_running_loop()
            )
        except (ArithmeticError, RuntimeError, ValueError, IndexError) as error:
            self._is_stuck = False
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

    def _answers(self, batch: Sequence[_Job], loop: asyncio.AbstractEventLoop) -> list[list[Answer]]:
        """Sample in this thread, watched. Raises _Overrun if a step did not end in time."""
        policy = batch[0].policy

        def post(note: Callable[..., None], *arguments: object) -> None:
            if not loop.is_closed():  # else this batch has outlived the drain
                loop.call_soon_threadsafe(note, *arguments)

        tokens = sum(len(job.request.prompt) + job.request.candidates for job in batch)
        steps = _Steps(
            batch,
            self._watch,
            self._bounds.run_s(policy.token_s * tokens),
            on_overrun=lambda: post(self._overran, policy.manifest.version),
            on_lost=lambda: post(self._lost, batch),
        )
        steps.begin()
        try:
            answers = policy.answer([job.request for job in batch], steps.is_abandoned, [job.speech for job in batch])
        finally:
            self._watch.end()
        if steps.is_stopped:
            raise _Overrun("a step did not end in time")
        return answers

    def _overran(self, version: str) -> None:
        """Turn away what waits, while the step goes on."""
        self._is_stuck = True
        self._metrics.stuck("policy", version)
        for job in self._queue:
            if not job.outcome.done():
                job.outcome.set_exception(_stuck())

    def _lost(self, batch: Sequence[_Job]) -> None:
        """Fail the requests of the step that goes on, with an error after which no client asks another worker."""
        for job in batch:
            if not job.outcome.done():
                job.outcome.set_exception(InternalError())

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


def _stuck() -> PolicyUnavailable:
    return PolicyUnavailable("sampling does not end")
