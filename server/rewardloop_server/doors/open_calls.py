"""Bounds the calls that anybody may make without credentials: of health and of reflection.

Such a call gets a small budget by connection, by address and in all, so that callers with credentials keep the rest of
the server's calls. It counts before its message has come, which must come soon and be small.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from rewardloop_server.calls.errors import InvalidRequest, QuotaSpent, RewardloopError, Violation
from rewardloop_server.observe.door_metrics import DoorMetrics

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

ANYBODY = "anybody"  # the caller of metrics about calls without credentials
_RETRY_MS = 1000


@dataclass(frozen=True, slots=True)
class OpenLimits:
    """Bounds of calls in flight that need no credentials.

    Attributes:
        per_connection: Most of them on one connection.
        per_address: Most of them from one address.
        total: Most of them in all.
        message_bytes: Most bytes of a message.
        message_s: Seconds within which the first message must come.
    """

    per_connection: int = 32
    per_address: int = 256
    total: int = 1024
    message_bytes: int = 4096
    message_s: float = 5.0


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Takes the place of a message that is too large or cannot be parsed."""

    description: str


class OpenCalls:
    """Counts the calls in flight. One event loop uses it."""

    def __init__(self, limits: OpenLimits, metrics: DoorMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._connections: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    def around(self, handler: Any) -> Handler:
        """Return the method within the bounds.

        It is a two-way stream's handler, because gRPC runs that before the message has come. On the wire a unary method
        looks the same.
        """

        async def call(requests: AsyncIterator[Any], context: Context) -> None:
            peer = context.peer()
            try:
                self._enter(peer)
            except RewardloopError as refusal:
                await _abort(refusal, context)
            try:
                await self._run(handler, requests, context)
            except RewardloopError as refusal:
                await _abort(refusal, context)
            finally:
                self._leave(peer)

        decode = _bounded(handler.request_deserializer, self._limits.message_bytes)
        return grpc.stream_stream_rpc_method_handler(call, decode, handler.response_serializer)

    async def _run(self, handler: Any, requests: AsyncIterator[Any], context: Context) -> None:
        if handler.request_streaming:
            async for reply in handler.stream_stream(self._readable(requests), context):
                await context.write(reply)
            return
        request = await self._first(requests)
        if handler.response_streaming:
            replies = handler.unary_stream(request, context)
            if inspect.isasyncgen(replies):
                async for reply in replies:
                    await context.write(reply)
            else:  # it writes to the context itself
                await replies
            return
        reply = await handler.unary_unary(request, context)
        if reply is not None:
            await context.write(reply)

    async def _first(self, requests: AsyncIterator[Any]) -> Any:
        try:
            async with asyncio.timeout(self._limits.message_s):
                # Not by `_readable`: a generator that is left halfway costs the event loop a task that closes it.
                return _checked(await anext(aiter(requests)))
        except TimeoutError:
            raise InvalidRequest([Violation("", f"no message within {self._limits.message_s:g} s")]) from None
        except StopAsyncIteration:
            raise InvalidRequest([Violation("", "the call ended without a message")]) from None

    async def _readable(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield _checked(request)

    def _enter(self, connection: str) -> None:
        """Count a call in. Raises QuotaSpent."""
        limits, address = self._limits, address_of(connection)
        for what, count, most in (
            ("on this connection", self._connections[connection], limits.per_connection),
            ("from this address", self._addresses[address], limits.per_address),
            ("in all", self._addresses.total(), limits.total),
        ):
            if count >= most:
                self._metrics.quota_refusals_total.labels(caller=ANYBODY, quota="concurrent").inc()
                raise QuotaSpent(
                    f"{count} calls of health and reflection are in flight {what}, which is the most",
                    retry_after_ms=_RETRY_MS,
                )
        self._connections[connection] += 1
        self._addresses[address] += 1

    def _leave(self, connection: str) -> None:
        for counter, key in ((self._connections, connection), (self._addresses, address_of(connection))):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]


def address_of(peer: str) -> str:
    """Return the address of a peer such as "ipv4:10.0.0.1:5000", without its port.

    Peers of a Unix socket have one address.
    """
    family, _, rest = unquote(peer).partition(":")
    return f"{family}:{rest.rpartition(':')[0]}" if family in ("ipv4", "ipv6") else family


def _bounded(decode: Callable[[bytes], Any], most: int) -> Callable[[bytes], Any]:
    def decode_or_mark(data: bytes) -> Any:
        if len(data) > most:
            return _Unreadable(f"the message has {len(data)} bytes, more than {most}")
        try:
            return decode(data)
        except DecodeError:
            return _Unreadable("not a message of this method, or a text in it is not UTF-8")

    return decode_or_mark


def _checked(request: Any) -> Any:
    """Return the request. Raises InvalidRequest if it could not be read."""
    if isinstance(request, _Unreadable):
        raise InvalidRequest([Violation("", request.description)])
    return request


async def _abort(error: RewardloopError, context: Context) -> None:
    await context.abort(error.code, error.message, error.trailing_metadata())
