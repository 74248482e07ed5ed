"""Builds the parts of labelling, and names what runs beside them."""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from rewardloop.formats.mixing.names import REWARD
from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.labelling.expect import Expectations
from rewardloop_server.labelling.queue import QueueRules, TaskQueue
from rewardloop_server.labelling.record import Recorder, settle_all
from rewardloop_server.labelling.servicer import LabellingServicer
from rewardloop_server.labelling.supply import Supply
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.observe.labelling_metrics import LabellingMetrics
from rewardloop_server.observe.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class LabellingDesk:
    """The parts of labelling.

    Attributes:
        servicer: The LabellingService.
        queue: The tasks, leases and answers.
        recorder: Makes signals of answers.
        metrics: The collectors of labelling.
        expectations: Scores tasks; None if no model does.
    """

    servicer: LabellingServicer
    queue: TaskQueue
    recorder: Recorder
    metrics: LabellingMetrics
    expectations: Expectations | None

    def upkeep(self) -> list[Coroutine[Any, Any, None]]:
        """Return what must run beside the service."""
        work = [settle_all(self.queue, self.recorder, self.metrics)]
        return work if self.expectations is None else [*work, self.expectations.run()]

    async def is_reachable(self) -> bool:
        """Return whether tasks are handed out right now."""
        try:
            return await self.queue.is_reachable()
        except RewardloopError:
            return False


def open_desk(  # noqa: PLR0913 - what labelling is built of
    redis: Redis,
    replication: Replication,
    rules: QueueRules,
    intake: Intake,
    generations: GenerationLog,
    limits: Limits,
    metrics: ServerMetrics,
    *,
    aspects: Collection[str] = (REWARD,),
    max_tasks: int = 1000,
    scorers: Scorers | None = None,
) -> LabellingDesk:
    """Build labelling on a Redis. Answers go to ``intake``. Without ``scorers`` all tasks are equally informative."""
    found = LabellingMetrics(metrics.registry)
    queue = TaskQueue(redis, rules, replication)

    def on_signal(kind: str) -> None:
        metrics.feedback_events_total.labels(kind=kind, outcome="recorded").inc()

    recorder = Recorder(queue, intake, limits, found, on_signal)
    supply = Supply(queue, generations, limits, aspects)
    servicer = LabellingServicer(queue, supply, recorder, found, max_tasks=max_tasks)
    return LabellingDesk(servicer, queue, recorder, found, None if scorers is None else Expectations(queue, scorers))
