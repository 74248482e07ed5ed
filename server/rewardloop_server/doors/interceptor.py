"""The interceptor around every RPC: it translates errors, counts, logs one event, and refuses calls while draining.

Health and reflection answer while the process drains, and are neither counted nor logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from rewardloop_server.calls.errors import (
    Draining,
    InternalError,
    InvalidRequest,
    RewardloopError,
    Violation,
    status_name,
)
from rewardloop_server.calls.message_size import LARGE_BYTES, MESSAGE_BYTES
from rewardloop_server.calls.vocabulary import UNKNOWN_METHOD
from rewardloop_server.doors.freed_memory import FreedMemory
from rewardloop_server.doors.large_messages import LargeMessages
from rewardloop_server.doors.roles import OPEN
from rewardloop_server.observe.metrics import ServerMetrics

if TYPE_CHECKING:
    from rewardloop_server.doors.door import Door

log = structlog.get_logger()

_OURS = "/rewardloop."
_V1 = "/rewardloop.v1."
# Server streams that end by themselves, which a drain waits for.
_SHORT_STREAMS = ("PolicyService/GenerateStream",)
_QUIET = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Takes the place of a request whose bytes protobuf cannot parse."""

    description: str


@dataclass(frozen=True, slots=True)
class _Unparsed:
    """Takes the place of a large request until it has its turn."""

    data: bytes


class _Stoppable:
    """An async iterator that `stop` ends, even while its next item is awaited.

    Attributes:
        was_cut_off: True if `stop` ended it, False if it ended by itself.
    """

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items
        self._awaited: asyncio.Timeout | None = None
        self._is_stopped = False
        self.was_cut_off = False

    def __aiter__(self) -> _Stoppable:
        return self

    async def __anext__(self) -> Any:
        # The item is awaited by the caller's task and not by one of its own, whose context the caller would not see.
        if not self._is_stopped:
            self._awaited = asyncio.timeout(None)
            try:
                async with self._awaited:
                    return await anext(self._items)
            except TimeoutError:
                if not self._is_stopped:
                    raise
            finally:
                self._awaited = None
        self.was_cut_off = True
        raise StopAsyncIteration

    def stop(self) -> None:
        self._is_stopped = True
        if self._awaited is not None:
            self._awaited.reschedule(asyncio.get_running_loop().time())


class RewardloopInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic only in its stubs
    """Wraps unary-unary, unary-stream and stream-stream methods.

    A RewardloopError ends the RPC with its rich status, an undecodable request with INVALID_ARGUMENT, any other
    exception with INTERNAL and a generic text. Cancellation passes through.

    Args:
        metrics: Where calls are counted.
        door: What every call passes; None if there is none.
        decoders: What reads the messages of some methods, by their full names; the others' are read by their own.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        door: Door | None = None,
        decoders: Mapping[str, Callable[[bytes], Any]] | None = None,
    ) -> None:
        self._metrics = metrics
        self._decoders = decoders or {}
        self._freed = FreedMemory()
        self._large = LargeMessages()
        self._door = door
        self._is_draining = False
        self._open: set[_Stoppable] = set()
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def drain(self) -> None:
        """Refuse new RPCs with DRAINING.

        Server streams end with it at once, unless they end by themselves. Two-way streams end with it once they have
        answered what they had read.
        """
        self._is_draining = True
        for stream in tuple(self._open):
            stream.stop()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if self._door is not None:
            refusal = self._door.knock(method, handler_call_details.invocation_metadata)
            if refusal is not None:
                return self._refusing(method if handler is not None else UNKNOWN_METHOD, refusal)
        if handler is None or (self._door is None and not method.startswith(_OURS)):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

    def _refusing(self, method: str, refusal: RewardloopError) -> Handler:
        """Return a handler that ends a call without reading its message.

        It is a two-way stream's handler, because gRPC runs that without a message.
        """

        async def refuse(_: Any, context: Context) -> None:
            rpc = _Rpc(method.removeprefix(_V1), self._metrics)
            if self._door is not None:
                await self._door.turn_away(method, refusal, context)
            try:
                await rpc.fail(refusal, context)
            finally:
                del context

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrap(self, handler: Any, method: str) -> Handler:
        """Return the method with everything of this module around it."""
        if self._door is not None:
            if method in OPEN:
                return self._door.open_calls.around(handler)
            handler = self._door.guard(handler, method)
        short = method.removeprefix(_V1)

        async def unary(request: Any, context: Context) -> Any:
            rpc = _Rpc(short, self._metrics)
            try:
                if isinstance(request, _Unparsed):
                    request = await self._parsed(request, context.peer(), parse)
                self._admit(request)
                reply = await handler.unary_unary(request, context)
            except BaseException as error:
                await rpc.fail(error, context)
            finally:
                del context  # see `_Rpc.fail`
            rpc.succeed()
            return reply

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            rpc = _Rpc(short, self._metrics)
            try:
                if isinstance(request, _Unparsed):
                    request = await self._parsed(request, context.peer(), parse)
                self._admit(request)
                if handler.request_streaming:
                    stoppable = _Stoppable(self._decodable(request, context.peer(), parse))
                    replies = handler.stream_stream(stoppable, context)
                else:
                    replies = handler.unary_stream(request, context)
                    stoppable = _Stoppable(replies)
                async with aclosing(replies):
                    if short not in _SHORT_STREAMS:
                        self._open.add(stoppable)
                    try:
                        async for reply in replies if handler.request_streaming else stoppable:
                            yield reply
                    finally:
                        self._open.discard(stoppable)
                if stoppable.was_cut_off:
                    raise Draining("the server is shutting down")
            except BaseException as error:
                await rpc.fail(error, context)
            finally:
                del context
            rpc.succeed()

        parse = _tolerant(self._decoders.get(method, handler.request_deserializer))
        decode = _noting(parse, self._freed.came)
        encode = handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, decode, encode)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
        return grpc.unary_unary_rpc_method_handler(unary, decode, encode)

    async def _parsed(self, request: _Unparsed, peer: str, parse: Callable[[bytes], Any]) -> Any:
        """Return the request, parsed in its turn. What the method does without waiting belongs to the turn."""
        async with self._large.turn(peer, len(request.data)):
            return parse(request.data)

    async def _decodable(
        self, requests: AsyncIterator[Any], peer: str, parse: Callable[[bytes], Any]
    ) -> AsyncIterator[Any]:
        async for request in requests:
            if isinstance(request, _Unparsed):
                request = await self._parsed(request, peer, parse)
            if isinstance(request, _Undecodable):
                raise InvalidRequest([Violation("", request.description)])
            yield request

    def _admit(self, request: Any) -> None:
        if self._is_draining:
            raise Draining("the server is shutting down")
        if isinstance(request, _Undecodable):
            raise InvalidRequest([Violation("", request.description)])


class _Rpc:
    """One RPC, whose end is counted once and logged once."""

    def __init__(self, method: str, metrics: ServerMetrics) -> None:
        self._method = method
        self._metrics = metrics
        self._started = time.monotonic()
        metrics.requests_in_flight.labels(method=method).inc()

    def succeed(self) -> None:
        self._count("OK")
        log.debug("rpc", method=self._method, code="OK", seconds=self._seconds())

    async def fail(self, error: BaseException, context: Context) -> NoReturn:
        """End the RPC with the error's status."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._count("CANCELLED")
            log.info("rpc", method=self._method, code="CANCELLED", seconds=self._seconds())
            raise error
        if isinstance(error, grpc.aio.AbortError):  # the method chose its own status, as the policy relay does
            code = status_name(context.code())
            self._count(code)
            log.info("rpc", method=self._method, code=code, seconds=self._seconds())
            raise error
        known = _as_known(error)
        if known is None:
            known = InternalError()
            log.error("rpc", method=self._method, code=known.code.name, seconds=self._seconds(), exc_info=error)
        else:
            # Under overload or attack these are many and must be cheap. The metrics count them.
            write = log.debug if known.code in _QUIET else log.info
            write(
                "rpc",
                method=self._method,
                code=known.code.name,
                reason=known.reason,
                error=known.message,
                cause=str(known.__cause__) if known.__cause__ else None,
                seconds=self._seconds(),
            )
        self._count(known.code.name)
        self._metrics.rejected_total.labels(reason=known.reason).inc()
        # gRPC keeps the exception that ends the call in the call's context. If the exception's frames named the
        # context, only the garbage collector could free both, and its pauses are felt in a flood.
        error.__traceback__ = None
        try:
            await context.abort(known.code, known.message, known.trailing_metadata())
        finally:
            del context, error, known

    def _count(self, code: str) -> None:
        self._metrics.requests_in_flight.labels(method=self._method).dec()
        self._metrics.requests_total.labels(method=self._method, code=code).inc()
        self._metrics.request_seconds.labels(method=self._method).observe(time.monotonic() - self._started)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 6)


def _as_known(error: BaseException) -> RewardloopError | None:
    """Return ``error`` if it is a RewardloopError, or the first of a group that holds nothing else; else None."""
    if isinstance(error, RewardloopError):
        return error
    if isinstance(error, BaseExceptionGroup):
        known, others = error.split(RewardloopError)
        if known is not None and others is None:
            return _as_known(known.exceptions[0])
    return None


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that marks bytes which protobuf cannot parse. gRPC itself would answer INTERNAL to them."""

    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable("not a message of this method, or a text in it is not UTF-8")

    return decode_or_mark


def _noting(parse: Callable[[bytes], Any], came: Callable[[int], None]) -> Callable[[bytes], Any]:
    """Return a deserializer that leaves a large message as it is. It calls ``came`` with the size of each message."""

    def note(data: bytes) -> Any:
        MESSAGE_BYTES.set(len(data))
        came(len(data))
        return parse(data) if len(data) < LARGE_BYTES else _Unparsed(data)

    return note
