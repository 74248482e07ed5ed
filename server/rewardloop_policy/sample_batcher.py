"""Answers requests with torch: they wait in a queue, and one thread samples those that there is room for together.

A step that does not end cannot be stopped, because it is in torch. Meanwhile every request is turned away, and if the
step goes on, the process ends (`Watch`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from rewardloop_policy.policy_model import PolicyModel
from rewardloop_policy.policy_text import Answer
from rewardloop_policy.sample_callers import Callers, stuck
from rewardloop_policy.sample_queue import Job, SampleQueue
from rewardloop_policy.sample_thread import Room, SampleThread
from rewardloop_policy.speech import Speech
from rewardloop_sampling.sampling import SampleRequest
from rewardloop_server.calls.vocabulary import SAMPLING_LANE
from rewardloop_server.guard.watch import RunBounds, Watch
from rewardloop_server.observe.metrics import ServerMetrics

_BOUNDS = RunBounds()


class SampleBatcher:
    """Serves requests in the order in which they come. Torch runs in one thread of its own.

    Args:
        room: How much is sampled at once.
        max_queue_rows: Most candidates that wait.
        metrics: Where the queue and the steps are measured.
        watch: Notices steps that do not end.
        bounds: How long a step may take.
    """

    def __init__(
        self,
        *,
        room: Room,
        max_queue_rows: int,
        metrics: ServerMetrics,
        watch: Watch | None = None,
        bounds: RunBounds = _BOUNDS,
    ) -> None:
        self._metrics = metrics
        self._queue = SampleQueue(max_queue_rows)
        self._callers = Callers(metrics)
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._sampling = SampleThread(
            self._queue, self._callers, room, metrics=metrics, watch=watch or Watch(), bounds=bounds
        )

    @property
    def is_stuck(self) -> bool:
        """Whether a step does not end."""
        return self._callers.is_stuck

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        return not self.is_stuck

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
        if self.is_stuck:
            raise stuck()
        job = Job(policy, request, deadline, asyncio.get_running_loop().create_future(), speech or Speech())
        self._queue.put(job)
        self._arrived.set()
        return await self._callers.wait(job)

    def set_gauges(self) -> None:
        """Set the queue's gauges."""
        queue = self._queue
        self._metrics.queue_rows.labels(lane=SAMPLING_LANE).set(queue.rows)
        self._metrics.queue_saturation_ratio.labels(lane=SAMPLING_LANE).set(queue.rows / queue.max_rows)
        self._metrics.queue_oldest_wait_seconds.labels(lane=SAMPLING_LANE).set(queue.waited_s)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._sampling.work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
