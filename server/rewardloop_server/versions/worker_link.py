"""The connection to the policy worker: one channel, and the ModelService's calls about the model "policy"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rewardloop.v1 import model_pb2, model_pb2_grpc
from rewardloop_client import Access
from rewardloop_server.calls.errors import DeadlinePassed, PolicyUnavailable

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
R = TypeVar("R")

NO_ACCESS = Access()
_HEALTH_TIMEOUT_S = 1.0
# A worker that has not answered for so long is taken for lost, as one that is stopped or cut off.
_LOST_AFTER_S = 8.0
_PASSED_ON = ("grpc-status-details-bin", "grpc-retry-pushback-ms")
_MAX_MESSAGE_BYTES = 64 * 2**20
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Spread calls over all addresses of the workers' name.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # Find a restarted worker quickly.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class PolicyWorkerLink:
    """Calls to the policy worker, each within its caller's remaining deadline.

    Args:
        address: host:port or unix:PATH of the worker. If it is empty there is no worker, and every call raises
            PolicyUnavailable.
        interceptors: Put around every call to the worker.
        access: How the worker is recognised, and what it is shown.
    """

    def __init__(
        self,
        address: str,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        access: Access = NO_ACCESS,
    ) -> None:
        self._address = address
        self._interceptors = interceptors
        self._access = access
        self._opened: grpc.aio.Channel | None = None
        self._heard = time.monotonic()
        self._lost = asyncio.Event()

    @property
    def is_known(self) -> bool:
        """Whether this deployment has a worker, whether or not it answers."""
        return bool(self._address)

    async def list_versions(
        self, request: model_pb2.ListVersionsRequest, context: Context
    ) -> model_pb2.ListVersionsResponse:
        return await self.forward(self._models().ListVersions, request, context)

    async def get_version(self, request: model_pb2.GetVersionRequest, context: Context) -> model_pb2.GetVersionResponse:
        return await self.forward(self._models().GetVersion, request, context)

    async def promote(self, request: model_pb2.PromoteRequest, context: Context) -> model_pb2.PromoteResponse:
        return await self.forward(self._models().Promote, request, context)

    async def roll_back(self, request: model_pb2.RollbackRequest, context: Context) -> model_pb2.RollbackResponse:
        return await self.forward(self._models().Rollback, request, context)

    async def set_canary(self, request: model_pb2.SetCanaryRequest, context: Context) -> model_pb2.SetCanaryResponse:
        return await self.forward(self._models().SetCanary, request, context)

    async def watch_versions(
        self, request: model_pb2.WatchVersionsRequest, context: Context
    ) -> AsyncIterator[model_pb2.WatchVersionsResponse]:
        call = self._models().WatchVersions(request, timeout=context.time_remaining(), metadata=self._access.metadata())
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            await _pass_on(error, context)
        finally:
            call.cancel()

    async def is_serving(self) -> bool:
        """Return whether the worker says that it has a warm policy. Takes at most a second.

        This must be asked again and again: calls in flight fail once the worker has said nothing for some seconds.
        """
        if not self._address:
            return False
        stub = health_pb2_grpc.HealthStub(self.channel())
        try:
            reply = await stub.Check(
                health_pb2.HealthCheckRequest(service="rewardloop.v1.PolicyService"), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            if time.monotonic() - self._heard > _LOST_AFTER_S and not self._lost.is_set():
                log.error("the policy worker does not answer", address=self._address)
                self._lost.set()
            return False
        self._heard = time.monotonic()
        if self._lost.is_set():
            log.info("the policy worker answers again", address=self._address)
            self._lost = asyncio.Event()
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close(None)

    def channel(self) -> grpc.aio.Channel:
        """Return the channel, which the first call opens. Raises PolicyUnavailable if there is no worker."""
        if not self._address:
            raise PolicyUnavailable("this deployment has no policy worker")
        if self._opened is None:  # not opened in the constructor, because a channel belongs to the running event loop
            self._opened = self._access.open_aio(self._address, _OPTIONS, self._interceptors)
        return self._opened

    def _models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self.channel())

    async def forward(self, method: Callable[..., Awaitable[R]], request: object, context: Context) -> R:
        """Pass the request on, and its reply or its status back.

        Raises:
            PolicyUnavailable: The worker does not answer.
            DeadlinePassed: The caller's deadline passed first.
        """
        call = asyncio.ensure_future(
            method(request, timeout=context.time_remaining(), metadata=self._access.metadata())
        )
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({call, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise PolicyUnavailable("the policy worker does not answer")
            return call.result()
        except grpc.aio.AioRpcError as error:
            await _pass_on(error, context)
        finally:
            lost.cancel()
            call.cancel()

    async def forward_stream(
        self, method: Callable[..., Any], request: object, context: Context
    ) -> AsyncGenerator[Any, None]:
        """Pass the request on, and its replies as they come, or its status. Raises as `forward` does."""
        call = method(request, timeout=context.time_remaining(), metadata=self._access.metadata())
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            while True:
                reply = asyncio.ensure_future(call.read())
                await asyncio.wait({reply, lost}, return_when=asyncio.FIRST_COMPLETED)
                if not reply.done():
                    reply.cancel()
                    raise PolicyUnavailable("the policy worker does not answer")
                if (found := reply.result()) is grpc.aio.EOF:  # type: ignore[attr-defined]  # not in its stubs
                    return
                yield found
        except grpc.aio.AioRpcError as error:
            await _pass_on(error, context)
        finally:
            lost.cancel()
            call.cancel()


async def _pass_on(error: grpc.aio.AioRpcError, context: Context) -> NoReturn:
    """Pass the worker's own status on, and translate what gRPC itself says of an unreachable or late worker."""
    trailing: Any = tuple(error.trailing_metadata() or ())
    is_the_workers = any(key == "grpc-status-details-bin" for key, _ in trailing)
    if error.code() is grpc.StatusCode.UNAVAILABLE and not is_the_workers:
        raise PolicyUnavailable("the policy worker does not answer") from error
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not is_the_workers:
        raise DeadlinePassed("the deadline passed before the policy worker answered") from error
    kept = tuple((key, value) for key, value in trailing if key in _PASSED_ON)
    await context.abort(error.code(), error.details() or "", kept)
