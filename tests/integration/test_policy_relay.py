"""The relay between a real serving process and a real worker, both over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from support.grpc_servers import Serve, serving
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, model_pb2, model_pb2_grpc, policy_pb2, policy_pb2_grpc
from rewardloop_server.calls.errors import InvalidRequest, QueueFull, UnknownVersion
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits, validate_prompt
from rewardloop_server.generate.relay import PolicyRelay
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from rewardloop_server.versions.worker_link import PolicyWorkerLink

POLICY_HEALTH = "rewardloop.v1.PolicyService"


class Worker(policy_pb2_grpc.PolicyServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """A worker that answers at once with what it was asked."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []
        self.cancelled = asyncio.Event()

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Any) -> policy_pb2.GenerateResponse:
        self.deadlines.append(context.time_remaining())
        violations: list[Any] = []
        validate_prompt(request.prompt, "prompt", Limits(), violations)
        if violations:
            raise InvalidRequest(violations)
        if request.prompt.text == "busy":
            raise QueueFull("the policy's queue is full", retry_after_ms=330)
        if request.prompt.text == "slow":
            await asyncio.sleep(30)
        return policy_pb2.GenerateResponse(
            generation_id="g1",
            candidates=[policy_pb2.Candidate(text=request.prompt.text)] * request.candidates,
            policy_version=common_pb2.ModelVersion(version="4"),
        )

    async def Promote(self, request: model_pb2.PromoteRequest, context: Any) -> model_pb2.PromoteResponse:
        if request.version == "99":
            raise UnknownVersion("the store has no version 99 of policy")
        return model_pb2.PromoteResponse(version=_version(request.version), previous_version="1")

    async def WatchVersions(
        self, request: model_pb2.WatchVersionsRequest, context: Any
    ) -> AsyncIterator[model_pb2.WatchVersionsResponse]:
        try:
            for version in ("4", "5"):
                yield model_pb2.WatchVersionsResponse(active=_version(version))
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()


def _version(version: str) -> model_pb2.VersionInfo:
    return model_pb2.VersionInfo(model="policy", version=common_pb2.ModelVersion(version=version))


class Front:
    """Stubs of the serving process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.policy: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)

    async def generate(self, text: str, candidates: int = 1, **how: Any) -> policy_pb2.GenerateResponse:
        request = policy_pb2.GenerateRequest(prompt=common_pb2.Prompt(text=text), candidates=candidates)
        reply: policy_pb2.GenerateResponse = await self.policy.Generate(request, **how)
        return reply


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/worker.sock"


@pytest.fixture
async def worker(address: str) -> AsyncIterator[Worker]:
    servicer = Worker()
    health = HealthServicer()
    await health.set(POLICY_HEALTH, health_pb2.HealthCheckResponse.SERVING)
    async with serving(
        ServerMetrics(),
        (policy_pb2_grpc.add_PolicyServiceServicer_to_server, servicer),
        (model_pb2_grpc.add_ModelServiceServicer_to_server, servicer),
        (health_pb2_grpc.add_HealthServicer_to_server, health),
        address=address,
    ):
        yield servicer


@pytest.fixture
async def link(address: str) -> AsyncIterator[PolicyWorkerLink]:
    link = PolicyWorkerLink(address)
    yield link
    await link.close()


@pytest.fixture
async def front(link: PolicyWorkerLink, serve: Serve, tmp_path: Path) -> AsyncIterator[Front]:
    models = ModelServicer({}, ModelStore(tmp_path), ActivePointer(connect_redis("redis://127.0.0.1:1/0")), link)
    async with serve(
        (policy_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyRelay(link)),
        (model_pb2_grpc.add_ModelServiceServicer_to_server, models),
    ) as channel:
        yield Front(channel)


async def test_answer_comes_back_as_the_worker_gave_it(front: Front, worker: Worker, link: PolicyWorkerLink) -> None:
    reply = await front.generate("hi", candidates=3)
    assert [candidate.text for candidate in reply.candidates] == ["hi"] * 3
    assert (reply.generation_id, reply.policy_version.version) == ("g1", "4")
    assert await link.is_serving()


async def test_error_comes_back_with_its_details(front: Front, worker: Worker, metrics: ServerMetrics) -> None:
    error = await failure(front.generate(""))
    assert (error.code(), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["prompt.text"])
    error = await failure(front.generate("busy"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert error.details() == "the policy's queue is full"
    assert {str(k): v for k, v in error.trailing_metadata() or ()}["grpc-retry-pushback-ms"] == "330"
    labels = {"method": "PolicyService/Generate", "code": "RESOURCE_EXHAUSTED"}
    async with asyncio.timeout(30):  # the caller may know how it ended before the server counts it
        while not metrics.registry.get_sample_value("rewardloop_requests_total", labels):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert metrics.registry.get_sample_value("rewardloop_requests_total", labels) == 1


async def test_deadline_goes_along(front: Front, worker: Worker) -> None:
    await front.generate("hi", timeout=7)
    (remaining,) = worker.deadlines
    assert remaining is not None
    assert 5 < remaining < 7.1  # gRPC rounds timeouts up on the wire
    error = await failure(front.generate("slow", timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_model_calls_for_the_policy_go_to_the_worker(front: Front, worker: Worker) -> None:
    reply = await front.models.Promote(model_pb2.PromoteRequest(model="policy", version="2"))
    assert (reply.version.version.version, reply.previous_version) == ("2", "1")
    error = await failure(front.models.Promote(model_pb2.PromoteRequest(model="policy", version="99")))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_VERSION")


async def test_watch_is_passed_on_and_ends_at_the_worker_too(front: Front, worker: Worker) -> None:
    watch = front.models.WatchVersions(model_pb2.WatchVersionsRequest(model="policy"))
    assert [(await watch.read()).active.version.version for _ in range(2)] == ["4", "5"]
    watch.cancel()
    await asyncio.wait_for(worker.cancelled.wait(), 5)


async def test_unreachable_worker_is_unavailable_until_it_comes(
    front: Front, link: PolicyWorkerLink, address: str
) -> None:
    for call in (front.generate("hi"), front.models.GetVersion(model_pb2.GetVersionRequest(model="policy"))):
        error = await failure(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "POLICY_UNAVAILABLE")
    assert not await link.is_serving()
    async with serving(
        ServerMetrics(), (policy_pb2_grpc.add_PolicyServiceServicer_to_server, Worker()), address=address
    ):
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await front.generate("hi")).generation_id == "g1"
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)


async def test_deployment_without_a_worker_says_so(serve: Serve) -> None:
    link = PolicyWorkerLink("")
    async with serve((policy_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyRelay(link))) as channel:
        error = await failure(Front(channel).generate("hi"))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "POLICY_UNAVAILABLE")
    assert not await link.is_serving()
