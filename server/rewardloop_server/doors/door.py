"""The door of one process, through which every call of every service passes before its method runs.

`knock` comes first, when the server has only the call's headers. It turns unauthorised callers away before a byte of
the message is read. `guard` surrounds the method. It checks client certificates, which gRPC shows only there, takes
the message's cost from the caller's quota, and writes the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from rewardloop.formats.tokens import Claims
from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.errors import NoCredentials, NotAllowed, RewardloopError, WrongCredentials, status_name
from rewardloop_server.calls.message_size import bytes_of_message
from rewardloop_server.doors.audit import AuditLog
from rewardloop_server.doors.callers import PRESENT, Callers, Credential, bearer_token
from rewardloop_server.doors.open_calls import OpenCalls, OpenLimits
from rewardloop_server.doors.own_user import OwnUser
from rewardloop_server.doors.price import Readers, one_reader, tokens_of
from rewardloop_server.doors.roles import ADMIN, ALLOWED, OPEN, PUBLISHABLE
from rewardloop_server.observe.door_metrics import DoorMetrics

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]] | None

_NAMES_OF_A_CERTIFICATE = ("x509_subject_alternative_name", "x509_common_name")


class Door:
    """Decides who may call what. If ``callers`` is None, everybody may call everything; admins' calls are recorded.

    Attributes:
        open_calls: Bounds the calls that need no credentials.
        own_user: Refuses other users of this machine; None refuses nobody for that.
        readers: Tells how many models read a group that names a mixture, for its price.
    """

    def __init__(self, callers: Callers | None, audit: AuditLog, metrics: DoorMetrics, open_limits: OpenLimits) -> None:
        self.open_calls = OpenCalls(open_limits, metrics)
        self.readers: Readers = one_reader
        self._callers = callers
        self.audit = audit
        self._metrics = metrics
        self.own_user: OwnUser | None = None

    def knock(self, method: str, metadata: Metadata) -> RewardloopError | None:
        """Return why a call is turned away, or None if its method may run. `guard` may still refuse it then."""
        callers = self._callers
        if callers is None or method in OPEN:
            return None
        token = bearer_token(metadata)
        if token is not None:
            found = callers.by_token(token)
        elif callers.table.certificates and method in ALLOWED:
            return None  # `guard` checks the certificate
        else:
            found = NoCredentials("no bearer token came with the call")
        return found if isinstance(found, RewardloopError) else self._admit(found, method)

    async def turn_away(self, method: str, refusal: RewardloopError, context: Context) -> None:
        """Record a refused attempt to call an admin's method."""
        if method in ADMIN:
            caller = _name(PRESENT.get())
            await self.audit.refused(caller, context.peer(), method, refusal.code.name, refusal.reason)

    def guard(self, handler: Any, method: str) -> Handler:
        """Return the method with the checks around it. It raises RewardloopError for a call that may not be made."""
        if self._callers is None and self.own_user is None and method not in ADMIN:
            return handler  # type: ignore[no-any-return]
        decode, encode = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._two_way(handler.stream_stream, method), decode, encode)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._server_stream(handler.unary_stream, method), decode, encode
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), decode, encode)

    def _unary(self, inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        if method in ADMIN:
            return self._audited(inner, method)

        async def unary(request: Any, context: Context) -> Any:
            self._let_in(method, request, context)
            return await inner(request, context)

        return unary

    def _audited(self, inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
        async def unary(request: Any, context: Context) -> Any:
            peer = context.peer()
            try:
                self._let_in(method, request, context)
            except RewardloopError as refusal:
                await self.audit.refused(_name(PRESENT.get()), peer, method, refusal.code.name, refusal.reason)
                raise
            caller = _name(PRESENT.get())
            action = await self.audit.began(caller, peer, method, request)
            outcome, reason = "INTERNAL", "INTERNAL"
            try:
                reply = await inner(request, context)
                outcome, reason = "OK", ""
                return reply
            except RewardloopError as error:
                outcome, reason = error.code.name, error.reason
                raise
            except grpc.aio.AbortError:  # the policy worker has refused, and its status is passed on
                outcome, reason = status_name(context.code()), ""
                raise
            except asyncio.CancelledError:
                outcome, reason = "CANCELLED", ""
                raise
            finally:
                # Shielded, so that the line is written even if the caller goes away.
                await asyncio.shield(self.audit.ended(action, caller, peer, method, outcome, reason))

        return unary

    def _server_stream(self, inner: Callable[[Any, Context], AsyncIterator[Any]], method: str) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            credential = self._let_in(method, request, context)
            async with aclosing(inner(request, context)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    self._check_still_good(credential)
                    yield reply

        return stream

    def _two_way(self, inner: Callable[[Any, Context], AsyncIterator[Any]], method: str) -> Any:
        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            credential = self._let_in(method, None, context)
            async with aclosing(inner(self._metered(requests, credential), context)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    yield reply

        return stream

    async def _metered(self, requests: AsyncIterator[Any], credential: Credential | None) -> AsyncIterator[Any]:
        """Yield the stream's requests and take each one's cost from the caller's quota.

        A caller over its quota is not refused: its requests are read more slowly.
        """
        async for request in requests:
            self._check_still_good(credential)
            if credential is not None and self._callers is not None:
                allowance = self._callers.allowance(credential.caller)
                if (pause_s := allowance.pause_s()) > 0:
                    await asyncio.sleep(pause_s)
                allowance.take_message()
                if allowance.measures:
                    allowance.take(tokens_of(request, self.readers), bytes_of_message(request))
            yield request

    def _let_in(self, method: str, request: Any, context: Context) -> Credential | None:
        """Admit the call and return the credential used, or None if authentication is off. Raises RewardloopError."""
        if self.own_user is not None and (refused := self.own_user.refusal(context.peer())) is not None:
            raise refused
        if self._callers is None:
            return None
        credential = PRESENT.get()
        if credential is None:
            found = self._callers.by_certificate(_certificate_names(context))
            refusal = found if isinstance(found, RewardloopError) else self._admit(found, method)
            if refusal is not None:
                raise refusal
            credential = PRESENT.get()
        if credential is not None and credential.only is not None:
            _check_only(credential.only, request)
        if request is not None and credential is not None:
            allowance = self._callers.allowance(credential.caller)
            if allowance.measures:
                allowance.take(tokens_of(request, self.readers), bytes_of_message(request))
        return credential

    def _admit(self, credential: Credential, method: str) -> RewardloopError | None:
        """Admit the caller, or return why not; release its slot when the task ends, even if no message arrives."""
        PRESENT.set(credential)
        allowed = ALLOWED.get(method)
        if allowed is None:
            return NotAllowed("there is no such method")
        if credential.only is not None and method not in PUBLISHABLE:
            return NotAllowed("a publishable token gives feedback and nothing else")
        if not credential.roles & allowed:
            wanted = " or ".join(sorted(allowed))
            return NotAllowed(f"{credential.caller} lacks the role {wanted}, which this method needs")
        assert self._callers is not None
        allowance = self._callers.allowance(credential.caller)
        if not allowance.is_bounded:
            return None
        refused = allowance.enter()
        if refused is not None:
            quota, refusal = refused
            self._metrics.quota_refusals_total.labels(caller=credential.caller, quota=quota).inc()
            return refusal
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(allowance.leave)
        return None

    def _check_still_good(self, credential: Credential | None) -> None:
        """Raise WrongCredentials if the credential that began a stream has expired or was removed."""
        if credential is not None and self._callers is not None and not self._callers.still_lets_in(credential):
            raise WrongCredentials("the credentials that began this stream are no longer good")


def _check_only(only: Claims, request: Any) -> None:
    """Raise NotAllowed unless each signal is about the token's generation, and by its annotator."""
    match request:
        case feedback_pb2.RecordRequest():
            events: Sequence[feedback_pb2.FeedbackEvent] = [request.event]
        case feedback_pb2.RecordBatchRequest():
            events = request.events
        case _:
            raise NotAllowed("a publishable token gives feedback and nothing else")
    for event in events:
        if event.generation_id != only.generation_id:
            raise NotAllowed("this publishable token gives feedback about another generation alone")
        if event.annotator_id != only.annotator_id:
            raise NotAllowed("this publishable token gives feedback by another annotator alone")


def _certificate_names(context: Context) -> list[str]:
    """Return the names in the verified client certificate: its subject alternative names, then its common name."""
    shown: Any = context.auth_context() or {}
    if shown.get("transport_security_type") != [b"ssl"]:
        return []
    return [name.decode("utf-8", "replace") for kind in _NAMES_OF_A_CERTIFICATE for name in shown.get(kind, ())]


def _name(credential: Credential | None) -> str:
    return "" if credential is None else credential.caller
