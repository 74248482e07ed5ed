"""validate -> score each group -> reply: the RewardService's three RPCs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Protocol

from google.rpc import status_pb2

from rewardloop.v1 import reward_pb2, reward_pb2_grpc
from rewardloop_server.calls.errors import InvalidRequest, RewardloopError, Violation
from rewardloop_server.calls.estimate import estimated_tokens
from rewardloop_server.calls.large_batch import Batch
from rewardloop_server.calls.validate import Limits, validate_score
from rewardloop_server.doors.call import Call, Context, call_of
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batching import Batching
from rewardloop_server.scoring.bulk_window import BulkWindow
from rewardloop_server.scoring.score_group import ScoredGroup, lane_of


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """Bounds of a ScoreBatch or ScoreStream.

    Attributes:
        max_groups: Most groups in one ScoreBatch.
        max_in_flight_per_stream: Most requests of one ScoreStream that are worked on at once.
        window_tokens: About how many tokens of one such call are worked on at once.
    """

    max_groups: int
    max_in_flight_per_stream: int
    window_tokens: int


class Scorer(Protocol):
    """Scores groups with the model or the mixture that each of them names."""

    def score(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bounded: bool = True, is_bulk: bool = False
    ) -> Awaitable[ScoredGroup]:
        """Score one group, which the caller has validated; see `GroupScorer.score`."""

    def readers(self, name: str) -> int:
        """Return how many models read a group that names this model or mixture."""


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Answers Score, ScoreBatch and ScoreStream; ``scorer`` scores each group."""

    def __init__(
        self, scorer: Scorer, batcher: Batching, limits: Limits, bulk: BulkLimits, metrics: ServerMetrics
    ) -> None:
        self._scorer = scorer
        self._batcher = batcher
        self._limits = limits
        self._bulk = bulk
        self._metrics = metrics
        self._bulk_calls = itertools.count(1)

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        validate_score(request, self._limits)
        return (await self._scorer.score(request, call_of(context))).reply

    async def ScoreBatch(self, request: Batch, context: Context) -> reward_pb2.ScoreBatchResponse:
        groups, max_groups = request.groups, self._bulk.max_groups
        if not 1 <= len(groups) <= max_groups:
            raise InvalidRequest([Violation("groups", f"not 1 to {max_groups} groups")])
        call = self._bulk_call(context)
        # The call is admitted or refused as a whole. Once admitted, it waits for room rather than lose groups.
        first = groups[0]
        with self._batcher.reserved(
            lane_of(first), self._tokens(first), call.deadline, call.queue_name, account=call.caller
        ) as granted:
            if granted is not None:
                await granted
        window = BulkWindow(max_tokens=self._bulk.window_tokens, max_groups=max_groups)
        items = [reward_pb2.ScoreBatchItem() for _ in range(len(groups))]

        async def answer(group: reward_pb2.ScoreRequest, item: reward_pb2.ScoreBatchItem, tokens: int) -> None:
            outcome = await self._outcome(group, call, is_bounded=False)
            window.leave(tokens)
            if isinstance(outcome, reward_pb2.ScoreResponse):
                item.result.CopyFrom(outcome)
            else:
                item.error.CopyFrom(outcome)

        async with asyncio.TaskGroup() as answers:
            for group, item in zip(groups, items, strict=True):
                tokens = self._tokens(group)
                await self._enter(window, group, tokens)
                answers.create_task(answer(group, item, tokens))
        return reward_pb2.ScoreBatchResponse(items=items)

    async def ScoreStream(
        self, request_iterator: AsyncIterable[reward_pb2.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        # A request stays in the window until the transport has taken its reply. So the server stops reading from a
        # caller that does not read its replies, and holds no more for it than the window.
        window = BulkWindow(max_tokens=self._bulk.window_tokens, max_groups=self._bulk.max_in_flight_per_stream)
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
        window: BulkWindow,
        replies: asyncio.Queue[tuple[reward_pb2.ScoreStreamResponse, int] | None],
        call: Call,
    ) -> None:
        """Score the stream's requests as they come, and put each reply with its tokens into ``replies``, then None."""

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
                    tokens = self._tokens(request.request)
                    has_others = await self._enter(window, request.request, tokens)
                    answers.create_task(answer(request, tokens, not has_others))
        finally:
            replies.put_nowait(None)

    def _tokens(self, group: reward_pb2.ScoreRequest) -> int:
        """Return about how many tokens the models read that score the group."""
        return estimated_tokens(group) * (self._scorer.readers(group.model) if group.model else 1)

    async def _enter(self, window: BulkWindow, request: reward_pb2.ScoreRequest, tokens: int) -> bool:
        lane = lane_of(request)
        return await window.enter(tokens, lambda: self._batcher.has_bulk_room(lane))

    async def _outcome(
        self, request: reward_pb2.ScoreRequest, call: Call, *, is_bounded: bool
    ) -> reward_pb2.ScoreResponse | status_pb2.Status:
        """Return the group's reply, or the status with which it fails alone among its call's groups."""
        try:
            validate_score(request, self._limits)
            return (await self._scorer.score(request, call, is_bounded=is_bounded, is_bulk=True)).reply
        except RewardloopError as error:
            self._metrics.rejected_total.labels(reason=error.reason).inc()
            return error.to_status()

    def _bulk_call(self, context: Context) -> Call:
        """Return the call under a name of its own in the queue, so that it delays no single request of its sender."""
        call = call_of(context)
        return replace(call, bulk=next(self._bulk_calls))
