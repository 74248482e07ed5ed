"""reply: the RewardService - validate, tokenize, batch, run, and say which version made the score."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc
import numpy as np
import structlog
from google.rpc import status_pb2

from rewardloop.formats.store import Manifest
from rewardloop.formats.text import Encoded
from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from rewardloop_server.calls.errors import InternalError, InvalidRequest, RewardloopError, Violation
from rewardloop_server.calls.estimate import estimated_tokens
from rewardloop_server.calls.validate import Limits, validate_score
from rewardloop_server.doors.callers import PRESENT
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher
from rewardloop_server.scoring.bulk import Window
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import Floats, RewardModel
from rewardloop_server.scoring.lane import Scored
from rewardloop_server.scoring.shadow import ShadowScorer
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost

log = structlog.get_logger()

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# Manifest, lane, rows, seconds of tokenizing and in all, and what came of the batch.
TraceStages: TypeAlias = Callable[[Manifest, str, int, float, float, Scored], None]

# Requests with the same value of this metadata key share their turns, those without one their connection's. For
# callers behind a proxy, which all come by its connections.
_CALLER_KEY = "rewardloop-caller"

# Up to here plain Python is quicker than NumPy, whose mean and std take 40 microseconds whatever the number of rows.
_FEW_ROWS = 16

_STAGES = ("tokenize", "queue", "run", "total")


@dataclass(frozen=True, slots=True)
class _Call:
    """Who asks, and by when (monotonic clock) an answer is of use."""

    caller: str
    deadline: float | None


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores groups, each by one version: the one it pins, or what serves new requests when it is admitted."""

    def __init__(
        self,
        host: VersionHost[RewardModel],
        tokenizers: TokenizePool,
        batcher: Batcher,
        cache: ScoreCache,
        limits: Limits,
        metrics: ServerMetrics,
        freshness: Freshness,
        shadow: ShadowScorer,
        *,
        max_groups: int,
        max_in_flight_per_stream: int,
        bulk_window_tokens: int,
        trace_stages: TraceStages | None = None,
    ) -> None:
        self._host = host
        self._tokenizers = tokenizers
        self._batcher = batcher
        self._cache = cache
        self._limits = limits
        self._metrics = metrics
        self._freshness = freshness
        self._shadow = shadow
        self._max_groups = max_groups
        self._max_in_flight = max_in_flight_per_stream
        self._bulk_window_tokens = bulk_window_tokens
        self._bulk_calls = itertools.count(1)
        self._trace_stages = trace_stages
        # Looking a label set up costs as much as observing: once here, not once a group.
        self._stage_seconds = {
            lane: tuple(metrics.stage_seconds.labels(stage=stage, lane=lane) for stage in _STAGES)
            for lane in ("production", "trainer")
        }

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        return await self._score(request, _call(context), is_bulk=False)

    async def ScoreBatch(
        self, request: reward_pb2.ScoreBatchRequest, context: Context
    ) -> reward_pb2.ScoreBatchResponse:
        if not 1 <= len(request.groups) <= self._max_groups:
            raise InvalidRequest([Violation("groups", f"1 to {self._max_groups} groups, not {len(request.groups)}")])
        call = self._bulk_call(context)
        # The call is admitted or refused as a whole; admitted, it waits for room rather than lose groups on the way.
        first = request.groups[0]
        with self._batcher.reserved(_lane(first), estimated_tokens(first), call.deadline, call.caller):
            pass
        window = Window(max_tokens=self._bulk_window_tokens, max_groups=self._max_groups)
        items = [reward_pb2.ScoreBatchItem() for _ in request.groups]

        async def answer(group: reward_pb2.ScoreRequest, item: reward_pb2.ScoreBatchItem, tokens: int) -> None:
            outcome = await self._outcome(group, call, is_bounded=False)
            window.leave(tokens)
            if isinstance(outcome, reward_pb2.ScoreResponse):
                item.result.CopyFrom(outcome)
            else:
                item.error.CopyFrom(outcome)

        async with asyncio.TaskGroup() as answers:
            for group, item in zip(request.groups, items, strict=True):
                tokens = estimated_tokens(group)
                await self._enter(window, group, tokens)
                answers.create_task(answer(group, item, tokens))
        return reward_pb2.ScoreBatchResponse(items=items)

    async def ScoreStream(
        self, request_iterator: AsyncIterable[reward_pb2.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        # A request stays in the window until the transport has taken its reply, so a caller that does not read its
        # replies stops being read from, and what is held for it is no more than the window.
        window = Window(max_tokens=self._bulk_window_tokens, max_groups=self._max_in_flight)
        replies: asyncio.Queue[tuple[reward_pb2.ScoreStreamResponse, int] | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read_stream(request_iterator, window, replies, self._bulk_call(context)))
        try:
            while (reply := await replies.get()) is not None:
                yield reply[0]
                window.leave(reply[1])
            await reader
        finally:
            reader.cancel()

    async def _read_stream(
        self,
        requests: AsyncIterable[reward_pb2.ScoreStreamRequest],
        window: Window,
        replies: asyncio.Queue[tuple[reward_pb2.ScoreStreamResponse, int] | None],
        call: _Call,
    ) -> None:
        async def answer(request: reward_pb2.ScoreStreamRequest, tokens: int, is_bounded: bool) -> None:
            outcome = await self._outcome(request.request, call, is_bounded=is_bounded)
            reply = (
                reward_pb2.ScoreStreamResponse(request_id=request.request_id, result=outcome)
                if isinstance(outcome, reward_pb2.ScoreResponse)
                else reward_pb2.ScoreStreamResponse(request_id=request.request_id, error=outcome)
            )
            replies.put_nowait((reply, tokens))

        try:
            async with asyncio.TaskGroup() as answers:
                async for request in requests:
                    tokens = estimated_tokens(request.request)
                    has_others = await self._enter(window, request.request, tokens)
                    answers.create_task(answer(request, tokens, not has_others))
        finally:
            replies.put_nowait(None)

    async def _enter(self, window: Window, request: reward_pb2.ScoreRequest, tokens: int) -> bool:
        lane = _lane(request)
        return await window.enter(tokens, lambda: self._batcher.has_bulk_room(lane))

    async def _outcome(
        self, request: reward_pb2.ScoreRequest, call: _Call, *, is_bounded: bool
    ) -> reward_pb2.ScoreResponse | status_pb2.Status:
        """What becomes of a group whose failure must not be its neighbours'."""
        try:
            return await self._score(request, call, is_bounded=is_bounded)
        except RewardloopError as error:
            self._metrics.rejected_total.labels(reason=error.reason).inc()
            return error.to_status()

    async def _score(
        self, request: reward_pb2.ScoreRequest, call: _Call, *, is_bounded: bool = True, is_bulk: bool = True
    ) -> reward_pb2.ScoreResponse:
        validate_score(request, self._limits)
        lane = _lane(request)
        started = time.monotonic()
        key = request.prompt.SerializeToString(deterministic=True)
        pin = request.pin_version if request.HasField("pin_version") else None
        min_version = request.min_version if request.HasField("min_version") else None
        with self._host.lease(pin, min_version, key) as model:
            tokens = estimated_tokens(request, model.manifest.max_length)
            with self._batcher.reserved(lane, tokens, call.deadline, call.caller, is_bounded=is_bounded):
                rows = await self._tokenizers.encode(model.encoder, request, is_bulk=is_bulk)
            tokenized = time.monotonic()
            if request.truncation == reward_pb2.TRUNCATION_REFUSED:
                _refuse_truncated(rows, model.manifest.max_length)
            scored = await self._logits(model, rows, lane, call)
            reply = reply_of(model, rows, scored)
            self._freshness.answered(model.manifest)
        self._shadow.answered(request, key, model.manifest, rows, [each.score for each in reply.scores])
        stages = (tokenized - started, scored.queue_s, scored.run_s, time.monotonic() - started)
        for histogram, seconds in zip(self._stage_seconds[lane], stages, strict=True):
            histogram.observe(seconds)
        if self._trace_stages is not None:
            self._trace_stages(model.manifest, lane, len(rows), stages[0], stages[-1], scored)
        timings = reply.timings
        timings.tokenize_us, timings.queue_us, timings.run_us = (int(seconds * 1e6) for seconds in stages[:3])
        timings.run_rows, timings.run_tokens = scored.run_rows, scored.run_tokens
        return reply

    async def _logits(self, model: RewardModel, rows: list[Encoded], lane: str, call: _Call) -> Scored:
        """From the cache where it serves the lane and knows the row, else from a run."""
        if not self._cache.serves(lane):
            return await self._batcher.score(model, rows, lane, call.deadline, call.caller)
        keys, known = self._cache.look_up(model, rows, lane)
        missing = [i for i, logits in enumerate(known) if logits is None]
        scored = Scored(np.empty((0, model.manifest.heads), dtype=np.float32))
        if missing:
            asked = [rows[i] for i in missing]
            scored = await self._batcher.score(model, asked, lane, call.deadline, call.caller)
            self._cache.keep(model, [keys[i] for i in missing], scored.logits)
        fresh = iter(scored.logits)
        logits = np.stack([next(fresh) if row is None else row for row in known])
        return replace(scored, logits=logits)

    def _bulk_call(self, context: Context) -> _Call:
        """A bulk call takes turns as a caller of its own: it holds up no single request, not even its sender's."""
        call = _call(context)
        return _Call(f"{call.caller} #{next(self._bulk_calls)}", call.deadline)


def reply_of(model: RewardModel, rows: list[Encoded], scored: Scored) -> reward_pb2.ScoreResponse:
    """Calibrated, with the version that made it; timings are left to the caller.

    Raises InternalError where the version gives no number for a row: warming it has not met those weights.
    """
    means, spreads = _means_and_spreads(scored.logits)
    if not all(map(math.isfinite, means)):
        log.error("logits are not finite", version=model.manifest.version)
        raise InternalError
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


def _means_and_spreads(logits: Floats) -> tuple[list[float], list[float]]:
    """Over the heads, for each row."""
    if len(logits) <= _FEW_ROWS:
        rows = logits.tolist()
        means = [sum(row) / len(row) for row in rows]
        squares = (sum((x - mean) ** 2 for x in row) / len(row) for row, mean in zip(rows, means, strict=True))
        return means, [math.sqrt(square) for square in squares]
    wide = logits.astype(np.float64)
    return wide.mean(axis=1).tolist(), wide.std(axis=1).tolist()


def _refuse_truncated(rows: list[Encoded], max_length: int) -> None:
    too_long = [i for i, row in enumerate(rows) if row.truncated]
    if too_long:
        raise InvalidRequest(
            [Violation(f"responses[{i}]", f"with its prompt, more than {max_length} tokens") for i in too_long]
        )


def _lane(request: reward_pb2.ScoreRequest) -> str:
    return "trainer" if request.lane == common_pb2.LANE_TRAINER else "production"


def _call(context: Context) -> _Call:
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    if (credential := PRESENT.get()) is not None:  # who it is known to be, not who it says
        return _Call(credential.caller, deadline)
    for key, value in context.invocation_metadata() or ():
        if key == _CALLER_KEY:
            return _Call(str(value), deadline)
    return _Call(context.peer(), deadline)
