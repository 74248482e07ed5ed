"""Sends the requests of bench, which are ready bytes, over unary calls or one stream, and notes their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio

from rewardloop.v1 import reward_pb2
from rewardloop_cli.bench.seen import Seen
from rewardloop_client import RewardloopError
from rewardloop_client._errors import FailedCall, from_call, from_status

# Sends one request that was due at a `time.perf_counter` value, and returns its error if it failed as a whole.
Send: TypeAlias = Callable[[float], Awaitable[RewardloopError | None]]


class Unary:
    """Sends requests as calls of Score or ScoreBatch."""

    def __init__(self, method: Any, next_request: Callable[[], bytes], timeout_s: float, seen: Seen) -> None:
        self._method = method
        self._next = next_request
        self._timeout_s = timeout_s
        self._seen = seen

    async def __aenter__(self) -> Send:
        return self._send

    async def __aexit__(self, *_: object) -> None:
        return None

    async def _send(self, due: float) -> RewardloopError | None:
        """Return the error if the request, or all of its groups, failed."""
        try:
            reply = await self._method(self._next(), timeout=self._timeout_s)
        except grpc.RpcError as failure:
            error = from_call(cast(FailedCall, failure))
            self._seen.take(due, [], [error])
            return error
        if isinstance(reply, reward_pb2.ScoreResponse):
            self._seen.take(due, [reply], [])
            return None
        errors = [from_status(item.error) for item in reply.items if item.WhichOneof("outcome") == "error"]
        self._seen.take(due, [item.result for item in reply.items if item.WhichOneof("outcome") == "result"], errors)
        return errors[0] if len(errors) == len(reply.items) else None


class Stream:
    """Sends requests over one ScoreStream, and matches replies by their id."""

    def __init__(self, method: Any, next_request: Callable[[], bytes], timeout_s: float, seen: Seen) -> None:
        self._method = method
        self._next = next_request
        self._timeout_s = timeout_s
        self._seen = seen
        self._waiting: dict[str, tuple[float, asyncio.Future[RewardloopError | None]]] = {}
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._sent = 0
        self._broken: RewardloopError | None = None

    async def __aenter__(self) -> Send:
        self._reader = asyncio.ensure_future(self._read())
        return self._send

    async def __aexit__(self, *_: object) -> None:
        self._outgoing.put_nowait(None)
        await self._reader

    async def _send(self, due: float) -> RewardloopError | None:
        if self._broken is not None:
            self._seen.take(due, [], [self._broken])
            return self._broken
        self._sent += 1
        request_id = str(self._sent)
        outcome: asyncio.Future[RewardloopError | None] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = (due, outcome)
        # Serialized messages can be concatenated: this adds the id to the prepared request.
        self._outgoing.put_nowait(
            self._next() + reward_pb2.ScoreStreamRequest(request_id=request_id).SerializeToString()
        )
        try:
            return await asyncio.wait_for(outcome, self._timeout_s)
        except TimeoutError:
            return self._fail(request_id, RewardloopError(f"no reply within {self._timeout_s:g} s", reason="TIMEOUT"))

    async def _requests(self) -> AsyncIterator[bytes]:
        while (request := await self._outgoing.get()) is not None:
            yield request

    async def _read(self) -> None:
        failure: RewardloopError = RewardloopError("the stream ended", reason="STREAM_ENDED")
        try:
            async for reply in self._method(self._requests()):
                due, outcome = self._waiting.pop(reply.request_id, (0.0, None))
                if outcome is None or outcome.done():
                    continue
                if reply.WhichOneof("outcome") == "result":
                    self._seen.take(due, [reply.result], [])
                    outcome.set_result(None)
                else:
                    error = from_status(reply.error)
                    self._seen.take(due, [], [error])
                    outcome.set_result(error)
        except grpc.RpcError as broken:
            failure = from_call(cast(FailedCall, broken))
        self._broken = failure
        for request_id in list(self._waiting):
            self._fail(request_id, failure)

    def _fail(self, request_id: str, error: RewardloopError) -> RewardloopError:
        due, outcome = self._waiting.pop(request_id, (0.0, None))
        if outcome is not None:
            self._seen.take(due, [], [error])
            if not outcome.done():
                outcome.set_result(error)
        return error
