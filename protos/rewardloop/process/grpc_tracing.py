"""Makes a span of each RPC in the client and in the server, both in one trace. Imported only if tracing is on.

The metadata key ``traceparent`` (W3C Trace Context) carries the context. Names and attributes follow OpenTelemetry's
conventions for RPCs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import grpc
import grpc.aio
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
_SERVERS_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def tracer() -> trace.Tracer:
    return trace.get_tracer("rewardloop")


def carried() -> str:
    """Return the current span as a ``traceparent``, or an empty text if there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def context_of(traceparent: str) -> contexts.Context:
    """Return the context of a ``traceparent`` that `carried` returned in another process."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, contexts.Context())


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):
    pass


class ClientTracing(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    """Makes a span of each call of a blocking channel, through `grpc.intercept_channel`."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._traced(continuation, details, request)

    def intercept_stream_stream(self, continuation: Any, details: Any, request_iterator: Any) -> Any:
        return self._traced(continuation, details, request_iterator)

    def _traced(self, continuation: Any, details: Any, request: Any) -> Any:
        span, metadata = _begin_call(details.method, details.metadata)
        wait, compression = (getattr(details, name, None) for name in ("wait_for_ready", "compression"))
        call = continuation(
            _CallDetails(details.method, details.timeout, metadata, details.credentials, wait, compression), request
        )
        call.add_done_callback(lambda done: _end(span, done.code()))
        return call


class AioUnaryTracing(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """Makes a span of each unary call of an asyncio channel."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = client_call_details
        span, metadata = _begin_call(details.method, details.metadata)
        call = await continuation(details._replace(metadata=grpc.aio.Metadata(*metadata)), request)
        try:
            _end(span, await call.code())
        except asyncio.CancelledError:
            call.cancel()
            _end(span, grpc.StatusCode.CANCELLED)
            raise
        return call


class AioStreamTracing(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    """Makes a span of each stream of an asyncio channel."""

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        details = client_call_details
        span, metadata = _begin_call(details.method, details.metadata)
        call = await continuation(details._replace(metadata=grpc.aio.Metadata(*metadata)), request_iterator)
        call.add_done_callback(
            lambda done: _end(span, grpc.StatusCode.CANCELLED if done.cancelled() else grpc.StatusCode.OK)
        )
        return call


def aio_interceptors() -> list[Any]:
    """Return the interceptors for a channel of `grpc.aio`."""
    return [AioUnaryTracing(), AioStreamTracing()]


class ServerTracing(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Makes a span of each RPC, except those of health and reflection.

    It must be the outermost interceptor, so that the work of the others is inside the span.
    """

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/rewardloop."):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, _traced_handler(handler, method))
        return known[1]


def _traced_handler(handler: Any, method: str) -> Any:
    async def unary(request: Any, context: Any) -> Any:
        span = _begin_service(method, context)
        try:
            reply = await handler.unary_unary(request, context)
        except BaseException:
            _end(span, context.code() or grpc.StatusCode.CANCELLED)
            raise
        _end(span, grpc.StatusCode.OK)
        return reply

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        span = _begin_service(method, context)
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        try:
            async with aclosing(inner(request, context)) as replies:
                async for reply in replies:
                    yield reply
        except BaseException:
            _end(span, context.code() or grpc.StatusCode.CANCELLED)
            raise
        _end(span, grpc.StatusCode.OK)

    decode, encode = handler.request_deserializer, handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, decode, encode)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
    return grpc.unary_unary_rpc_method_handler(unary, decode, encode)


def _begin_service(method: str, context: Any) -> Span:
    """Start the span of an RPC and make it the current one of this task and of the tasks that it starts.

    The span stays the current one, because each RPC runs in a task of its own, which ends with it.
    """
    parent = next((str(v) for k, v in context.invocation_metadata() or () if k == "traceparent"), "")
    span = _span(method, SpanKind.SERVER, context_of(parent))
    contexts.attach(trace.set_span_in_context(span))
    return span


def _begin_call(method: Any, metadata: Any) -> tuple[Span, list[tuple[str, str | bytes]]]:
    name = method.decode() if isinstance(method, bytes) else method
    span = _span(name, SpanKind.CLIENT, contexts.get_current())
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return span, [*(metadata or ()), *carrier.items()]


def _span(method: str, kind: SpanKind, parent: contexts.Context) -> Span:
    service, _, name = method.lstrip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    return tracer().start_span(f"{service}/{name}", parent, kind, attributes)


def _end(span: Span, code: Any) -> None:
    status = code if isinstance(code, grpc.StatusCode) else _numbered(code)
    span.set_attribute("rpc.grpc.status_code", status.value[0])
    if status.name in _SERVERS_FAULTS:
        span.set_status(Status(StatusCode.ERROR, status.name))
    span.end()


def _numbered(code: Any) -> grpc.StatusCode:
    return next((each for each in grpc.StatusCode if each.value[0] == code), grpc.StatusCode.UNKNOWN)
