"""A door with every service behind it, over real gRPC: methods that answer at once with an empty reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from rewardloop.formats.tokens import new_token, token_digest
from rewardloop.v1 import (
    access_pb2,
    access_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    labelling_pb2,
    labelling_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.doors.settings import DoorSettings
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.probes import add_health_and_reflection

_MODULES = (
    (reward_pb2, reward_pb2_grpc),
    (feedback_pb2, feedback_pb2_grpc),
    (labelling_pb2, labelling_pb2_grpc),
    (policy_pb2, policy_pb2_grpc),
    (model_pb2, model_pb2_grpc),
    (operations_pb2, operations_pb2_grpc),
    (access_pb2, access_pb2_grpc),
)
_SERVICES = [(service, stubs) for module, stubs in _MODULES for service in module.DESCRIPTOR.services_by_name.values()]

METHODS = [f"/{service.full_name}/{method.name}" for service, _ in _SERVICES for method in service.methods]


@dataclass
class Behind:
    """What was called, and what a test makes the methods do first."""

    calls: list[str] = field(default_factory=list)
    begin: Callable[[str, Any], Any] | None = None

    async def called(self, path: str, request: Any) -> None:
        self.calls.append(path.rpartition("/")[2])
        if self.begin is not None:
            await self.begin(path, request)


@dataclass
class Opened:
    port: int
    metrics: ServerMetrics
    behind: Behind
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, name: str, value: float, **labels: str) -> None:
        """Wait for a metric to get there."""
        async with asyncio.timeout(60):
            while self.figure(name, **labels) < value:  # noqa: ASYNC110 - a counter cannot be awaited
                await asyncio.sleep(0.02)

    async def reloaded(self, file: str, times: int = 1, outcome: str = "taken") -> None:
        await self.until("rewardloop_door_reloads_total", times, file=file, outcome=outcome)


@asynccontextmanager
async def opened(max_message_bytes: int = 2**20, **settings: Any) -> AsyncIterator[Opened]:
    """A server with these settings of its door, on a port of loopback."""
    metrics = ServerMetrics()
    entrance = Entrance(DoorSettings(**{"reload_s": 0.05, **settings}), metrics.registry, "test")
    server = entrance.server([RewardloopInterceptor(metrics, entrance.door)], max_message_bytes)
    behind = Behind()
    for service, stubs in _SERVICES:
        getattr(stubs, f"add_{service.name}Servicer_to_server")(_servicer(service, stubs, behind), server)
    health = add_health_and_reflection(server, [])
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    port = _free_port()
    entrance.open(server, f"127.0.0.1:{port}")
    upkeep = [asyncio.create_task(work) for work in entrance.upkeep()]
    await server.start()
    try:
        yield Opened(port, metrics, behind)
    finally:
        for task in upkeep:
            task.cancel()
        await server.stop(None)


@asynccontextmanager
async def connected(**settings: Any) -> AsyncIterator[tuple[Opened, grpc.aio.Channel]]:
    """`opened` without TLS, and a connection to it."""
    async with opened(**settings) as door, grpc.aio.insecure_channel(door.address) as channel:
        yield door, channel


def _servicer(service: Any, stubs: Any, behind: Behind) -> Any:
    methods = {
        method.name: _method(f"/{service.full_name}/{method.name}", method, behind) for method in service.methods
    }
    return type(service.name, (getattr(stubs, f"{service.name}Servicer"),), methods)()


def _method(path: str, method: Any, behind: Behind) -> Any:
    response = method.output_type._concrete_class

    async def unary(self: Any, request: Any, context: Any) -> Any:
        await behind.called(path, request)
        return _whole(response(), request)

    async def server_stream(self: Any, request: Any, context: Any) -> Any:
        await behind.called(path, request)
        yield _whole(response(), request)

    async def two_way(self: Any, requests: Any, context: Any) -> Any:
        async for request in requests:
            await behind.called(path, request)
            yield _whole(response(), request)

    return two_way if method.client_streaming else server_stream if method.server_streaming else unary


def _whole(reply: Any, request: Any) -> Any:
    """The reply with the least that the contract demands of it."""
    if isinstance(reply, reward_pb2.ScoreResponse):
        reply.scores.extend(reward_pb2.ResponseScore() for _ in request.responses)
        reply.model_version.version = "1"
    elif isinstance(reply, reward_pb2.ScoreStreamResponse) and request.request_id:
        reply.request_id = request.request_id
        reply.result.CopyFrom(_whole(reward_pb2.ScoreResponse(), request.request))
    elif isinstance(reply, model_pb2.PromoteResponse):
        reply.version.version.version = request.version
    return reply


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended. ``retry_ms``: RetryInfo; ``pushback``: the trailer."""

    code: str
    reason: str = ""
    retry_ms: int | None = None
    pushback: str | None = None
    message: str = ""


async def call(
    channel: grpc.aio.Channel, path: str, token: str | None = None, request: bytes | None = b"", timeout_s: float = 60
) -> Outcome:
    """One call of any kind of method: on the wire they are the same, and each replies once here.

    ``request`` None: no message is ever sent. As unary calls, because grpc.aio may tell one whose stream is refused
    while it writes that it failed itself.
    """
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    made: Any
    if request is None:
        made = channel.stream_stream(path)(metadata=metadata, timeout=timeout_s)
    else:
        made = channel.unary_unary(path)(request, metadata=metadata, timeout=timeout_s)
    code = await made.code()
    if code is grpc.StatusCode.OK:
        return Outcome("OK")
    trailers: dict[str, Any] = dict(await made.trailing_metadata() or ())
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    packed = trailers.get("grpc-status-details-bin")
    for detail in rpc_status.status_pb2.Status.FromString(packed).details if packed else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    retry_ms = retry.retry_delay.ToMilliseconds() if retry.HasField("retry_delay") else None
    details = await made.details() or ""
    return Outcome(code.name, info.reason, retry_ms, trailers.get("grpc-retry-pushback-ms"), details)


class CallersFile:
    """The callers' file of a test, written whole each time."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "callers.toml"
        self._blocks: dict[str, str] = {}
        self._write()

    def add(self, caller: str, *roles: str, expires: str = "") -> str:
        """A new token for the caller."""
        token = new_token()
        lines = ["[[token]]", f'caller = "{caller}"', f'sha256 = "{token_digest(token)}"', f"roles = {list(roles)}"]
        lines += [f"expires = {expires}"] if expires else []
        self._blocks[token] = "\n".join(lines)
        self._write()
        return token

    def add_certificate(self, caller: str, name: str, *roles: str) -> None:
        self._blocks[name] = f'[[certificate]]\ncaller = "{caller}"\nname = "{name}"\nroles = {list(roles)}'
        self._write()

    def bound(self, caller: str, **quota: float) -> None:
        self._blocks[f"quota of {caller}"] = "\n".join(
            [f'[quota."{caller}"]', *(f"{k} = {v}" for k, v in quota.items())]
        )
        self._write()

    def remove(self, key: str) -> None:
        del self._blocks[key]
        self._write()

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("\n\n".join(self._blocks.values()) + "\n")
        new.replace(self.path)


def _free_port() -> int:
    from rewardloop_local.ports import free_port

    return free_port()
