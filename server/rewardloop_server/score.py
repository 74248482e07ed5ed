"""reply: the RewardService - validate, tokenize, batch, run, and say which version made the score."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, TypeAlias

import grpc
import numpy as np

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoded
from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from rewardloop_server.batch import Batcher, Scored
from rewardloop_server.engine import RewardModel
from rewardloop_server.errors import InvalidRequest, RewardloopError, UnknownVersion, Violation
from rewardloop_server.freshness import Freshness
from rewardloop_server.metrics import ServerMetrics
from rewardloop_server.swap import VersionHost
from rewardloop_server.tokenize import TokenizePool
from rewardloop_server.validate import Limits, validate_score

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores groups; every group is scored by the one version that was active when it was admitted."""

    def __init__(
        self,
        host: VersionHost[RewardModel],
        tokenizers: TokenizePool,
        batcher: Batcher,
        limits: Limits,
        metrics: ServerMetrics,
        freshness: Freshness,
        *,
        max_groups: int,
        max_in_flight_per_stream: int,
    ) -> None:
        self._host = host
        self._tokenizers = tokenizers
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._freshness = freshness
        self._max_groups = max_groups
        self._max_in_flight = max_in_flight_per_stream

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        return await self._score(request, _deadline(context))

    async def ScoreBatch(
        self, request: reward_pb2.ScoreBatchRequest, context: Context
    ) -> reward_pb2.ScoreBatchResponse:
        if not 1 <= len(request.groups) <= self._max_groups:
            raise InvalidRequest([Violation("groups", f"1 to {self._max_groups} groups, not {len(request.groups)}")])
        deadline = _deadline(context)
        items = await asyncio.gather(*(self._item(group, deadline) for group in request.groups))
        return reward_pb2.ScoreBatchResponse(items=items)

    async def ScoreStream(
        self, request_iterator: AsyncIterable[reward_pb2.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        # Bounded: a caller that does not read its replies stops being read from.
        replies: asyncio.Queue[reward_pb2.ScoreStreamResponse | None] = asyncio.Queue(self._max_in_flight)
        reader = asyncio.create_task(self._read_stream(request_iterator, replies, _deadline(context)))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
            await reader
        finally:
            reader.cancel()

    async def _read_stream(
        self,
        requests: AsyncIterable[reward_pb2.ScoreStreamRequest],
        replies: asyncio.Queue[reward_pb2.ScoreStreamResponse | None],
        deadline: float | None,
    ) -> None:
        room = asyncio.Semaphore(self._max_in_flight)

        async def answer(request: reward_pb2.ScoreStreamRequest) -> None:
            try:
                item = await self._item(request.request, deadline)
                reply = reward_pb2.ScoreStreamResponse(request_id=request.request_id)
                if item.WhichOneof("outcome") == "result":
                    reply.result.CopyFrom(item.result)
                else:
                    reply.error.CopyFrom(item.error)
                await replies.put(reply)
            finally:
                room.release()

        try:
            async with asyncio.TaskGroup() as answers:
                async for request in requests:
                    await room.acquire()
                    answers.create_task(answer(request))
        finally:
            await replies.put(None)

    async def _item(self, request: reward_pb2.ScoreRequest, deadline: float | None) -> reward_pb2.ScoreBatchItem:
        """A group's outcome, where its failure must not be its neighbours'."""
        try:
            return reward_pb2.ScoreBatchItem(result=await self._score(request, deadline))
        except RewardloopError as error:
            self._metrics.rejected_total.labels(reason=error.reason).inc()
            return reward_pb2.ScoreBatchItem(error=error.to_status())

    async def _score(self, request: reward_pb2.ScoreRequest, deadline: float | None) -> reward_pb2.ScoreResponse:
        validate_score(request, self._limits)
        lane = "trainer" if request.lane == common_pb2.LANE_TRAINER else "production"
        started = time.monotonic()
        with self._host.lease() as model:
            _check_version(request, model.manifest)
            rows = await self._tokenizers.encode(model.encoder, request)
            tokenized = time.monotonic()
            if request.truncation == reward_pb2.TRUNCATION_REFUSED:
                _refuse_truncated(rows, model.manifest.max_length)
            scored = await self._batcher.score(model, rows, lane, deadline)
            reply = _reply(model, rows, scored)
            self._freshness.answered(model.manifest)
        stages = {"tokenize": tokenized - started, "queue": scored.queue_s, "run": scored.run_s}
        stages["total"] = time.monotonic() - started
        for stage, seconds in stages.items():
            self._metrics.stage_seconds.labels(stage=stage, lane=lane).observe(seconds)
        reply.timings.tokenize_us = int(stages["tokenize"] * 1e6)
        reply.timings.queue_us = int(stages["queue"] * 1e6)
        reply.timings.run_us = int(stages["run"] * 1e6)
        return reply


def _reply(model: RewardModel, rows: list[Encoded], scored: Scored) -> reward_pb2.ScoreResponse:
    logits = scored.logits.astype(np.float64)
    means, spreads = logits.mean(axis=1).tolist(), logits.std(axis=1).tolist()
    calibration = model.calibration
    return reward_pb2.ScoreResponse(
        scores=[
            reward_pb2.ResponseScore(
                score=calibration.score(mean, row.response_tokens),
                logit=mean,
                uncertainty=abs(calibration.scale) * spread,
                token_count=len(row.ids),
                truncated=row.truncated,
            )
            for row, mean, spread in zip(rows, means, spreads, strict=True)
        ],
        model_version=common_pb2.ModelVersion(version=model.manifest.version, digest=model.manifest.digest),
    )


def _check_version(request: reward_pb2.ScoreRequest, manifest: Manifest) -> None:
    if request.HasField("pin_version") and request.pin_version not in (manifest.version, manifest.digest):
        raise UnknownVersion(f"version {request.pin_version!r} is not served here; {manifest.version} is")
    if request.HasField("min_version") and int(manifest.version) < request.min_version:
        raise UnknownVersion(f"version {request.min_version} or later is not served here; {manifest.version} is")


def _refuse_truncated(rows: list[Encoded], max_length: int) -> None:
    too_long = [i for i, row in enumerate(rows) if row.truncated]
    if too_long:
        raise InvalidRequest(
            [Violation(f"responses[{i}]", f"with its prompt, more than {max_length} tokens") for i in too_long]
        )


def _deadline(context: Context) -> float | None:
    """The caller's deadline on the monotonic clock."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
