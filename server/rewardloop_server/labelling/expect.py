"""Asks the live reward model what the answer about each task is expected to tell it, in the background."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import structlog

from rewardloop.formats.labelling.tasks import texts_of
from rewardloop.formats.mixing.names import REWARD
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.errors import InvalidRequest, RedisUnavailable, RewardloopError, StoreFull
from rewardloop_server.doors.call import Call
from rewardloop_server.labelling.queue import UNKNOWN_INFORMATION, TaskQueue
from rewardloop_server.mixing.scorers import Scorers
from rewardloop_server.scoring.engine import Floats

log = structlog.get_logger()

_CALLER = "labelling"
_AT_ONCE = 16
_PATIENCE_S = 30.0


def expected_information(heads: Floats) -> float:
    """Return what the answer about a task is expected to tell the reward model, 0..0.5.

    It is p(1 - p) of the pair where this is largest, the variance of which candidate is preferred, plus the variance of
    p over the score heads, where p is the probability under the model that one is preferred. A single candidate is
    compared with an answer of score 0.

    Args:
        heads: Logits, (candidates, heads). Each head's logits are Bradley-Terry strengths.
    """
    strengths = heads.astype(np.float64)
    if len(strengths) == 1:
        strengths = np.vstack([strengths, np.zeros_like(strengths)])
    one, other = np.triu_indices(len(strengths), k=1)
    p = 1 / (1 + np.exp(-np.clip(strengths[one] - strengths[other], -60, 60)))
    mean = p.mean(axis=1)
    return float(np.max(mean * (1 - mean) + p.var(axis=1)))


class Expectations:
    """Scores tasks in the lane of the trainer, behind production.

    Args:
        queue: The tasks.
        scorers: The reward models by the aspect that a task asks about.
    """

    def __init__(self, queue: TaskQueue, scorers: Scorers) -> None:
        self._queue = queue
        self._scorers = scorers

    async def run(self, every_s: float = 1.0) -> None:
        """Score what is not scored, again and again until cancelled. It waits while no model is warm."""
        while True:
            scored = 0
            try:
                for project in await self._queue.projects():
                    scored += await self._score_if_possible(project)
            except (RedisUnavailable, StoreFull):
                scored = 0
            if not scored:
                await asyncio.sleep(every_s)

    async def _score_if_possible(self, project: str) -> int:
        try:
            return await self.score_some(project)
        except (RedisUnavailable, StoreFull):
            raise
        except RewardloopError as error:  # no model is warm, or its queue is full
            log.debug("tasks wait to be scored", project=project, error=str(error))
            return 0

    async def score_some(self, project: str) -> int:
        """Score some tasks of a project that are not scored. Returns how many. Raises RewardloopError."""
        waiting = await self._queue.unscored(project, _AT_ONCE)
        for task_id in waiting:
            await self._score(project, task_id)
        return len(waiting)

    async def _score(self, project: str, task_id: str) -> None:
        task = await self._queue.task(project, task_id)
        if task is None:
            return await self._queue.inform(project, task_id, UNKNOWN_INFORMATION, "", "")
        request = reward_pb2.ScoreRequest(
            prompt=task.new.prompt,
            responses=texts_of(task.new),
            model=task.new.aspect,
            lane=common_pb2.LANE_TRAINER,
        )
        aspect = task.new.aspect or REWARD
        call = Call(_CALLER, time.monotonic() + _PATIENCE_S)
        try:
            scored = await self._scorers.score(request, call)
        except InvalidRequest as error:  # the model has no place for something in the prompt, such as tools
            log.info("a task cannot be scored", project=project, task=task_id, error=str(error))
            return await self._queue.inform(project, task_id, UNKNOWN_INFORMATION, "", aspect)
        digest = scored.reply.model_version.digest
        return await self._queue.inform(project, task_id, expected_information(scored.logits), digest, aspect)
