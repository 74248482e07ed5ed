"""What surrounds every RPC, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from support.statuses import failure, reason_of

from rewardloop.v1 import (
    common_pb2,
    feedback_pb2,
    feedback_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
)
from rewardloop_server.calls.errors import InvalidRequest, QueueFull, Violation
from rewardloop_server.calls.message_size import LARGE_BYTES, MESSAGE_BYTES
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.observe.metrics import ServerMetrics

NOT_UTF8 = b"\x0a\x03\x0a\x01\xff"  # field 1 (event) of 3 bytes: field 1 (event_id), 1 byte, 0xff


class Feedback(feedback_pb2_grpc.FeedbackServiceServicer):
    """Does what the event_id says."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def Record(self, request: Any, context: Any) -> feedback_pb2.RecordResponse:
        match request.event.event_id:
            case "full":
                raise QueueFull("the queue is full", retry_after_ms=250)
            case "bug":
                raise ValueError("secret prompt")
            case "many":
                raise InvalidRequest([Violation(f"responses[{i}]", "empty") for i in range(10_000)])
            case "wide":
                raise QueueFull("😀" * 10_000)
            case "slow":
                await self.released.wait()
            case "own":
                await context.abort(grpc.StatusCode.DATA_LOSS, "chosen by the method")
        return feedback_pb2.RecordResponse(stream_id="1-0")


class Models(model_pb2_grpc.ModelServiceServicer):
    async def WatchVersions(self, request: Any, context: Any) -> AsyncIterator[model_pb2.WatchVersionsResponse]:
        yield model_pb2.WatchVersionsResponse(active=model_pb2.VersionInfo(model="reward"))
        if request.model == "full":
            raise QueueFull("the queue is full")
        await asyncio.sleep(60)


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """Echoes each request_id, for "size" the message's bytes; a task group surrounds the reading, as in reality."""

    async def ScoreStream(self, request_iterator: Any, context: Any) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        replies: asyncio.Queue[str | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    async for request in request_iterator:
                        if request.request_id == "full":
                            raise QueueFull("the queue is full")
                        name = str(MESSAGE_BYTES.get()) if request.request_id == "size" else request.request_id
                        group.create_task(replies.put(name))
            finally:
                await replies.put(None)

        reader = asyncio.create_task(read())
        while (name := await replies.get()) is not None:
            await asyncio.sleep(0.05 if name == "slow" else 0)
            yield reward_pb2.ScoreStreamResponse(request_id=name)
        await reader


@dataclass
class Running:
    channel: grpc.aio.Channel
    interceptor: RewardloopInterceptor
    metrics: ServerMetrics
    feedback: Feedback

    async def record(self, event_id: str = "") -> feedback_pb2.RecordResponse:
        stub: Any = feedback_pb2_grpc.FeedbackServiceStub(self.channel)
        reply: feedback_pb2.RecordResponse = await stub.Record(
            feedback_pb2.RecordRequest(event=feedback_pb2.FeedbackEvent(event_id=event_id))
        )
        return reply

    def watch(self, model: str = "reward") -> Any:
        stub: Any = model_pb2_grpc.ModelServiceStub(self.channel)
        return stub.WatchVersions(model_pb2.WatchVersionsRequest(model=model))

    def score_stream(self) -> Any:
        stub: Any = reward_pb2_grpc.RewardServiceStub(self.channel)
        return stub.ScoreStream()

    def counted(self, method: str, code: str) -> float | None:
        return self.metrics.registry.get_sample_value("rewardloop_requests_total", {"method": method, "code": code})

    async def counts(self, method: str, code: str) -> None:
        """Wait for the first such RPC to be counted: the caller may know how it ended before the server does."""
        async with asyncio.timeout(30):
            while not self.counted(method, code):  # noqa: ASYNC110 - a counter cannot be awaited
                await asyncio.sleep(0.01)
        assert self.counted(method, code) == 1


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    metrics = ServerMetrics()
    interceptor = RewardloopInterceptor(metrics)
    server = grpc.aio.server(interceptors=[interceptor])
    feedback = Feedback()
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(Reward(), server)
    health = HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(channel, interceptor, metrics, feedback)
    await server.stop(None)


async def test_success_is_counted_and_timed() -> None:
    async with running() as server:
        assert (await server.record()).stream_id == "1-0"
        assert server.counted("FeedbackService/Record", "OK") == 1
        seconds = {"method": "FeedbackService/Record"}
        assert server.metrics.registry.get_sample_value("rewardloop_request_seconds_count", seconds) == 1


async def test_error_goes_out_with_reason_and_pushback() -> None:
    async with running() as server:
        error = await failure(server.record("full"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "the queue is full"
        assert reason_of(error) == "QUEUE_FULL"
        assert ("grpc-retry-pushback-ms", "250") in [(str(k), v) for k, v in error.trailing_metadata() or ()]
        assert server.counted("FeedbackService/Record", "RESOURCE_EXHAUSTED") == 1
        rejected = server.metrics.registry.get_sample_value("rewardloop_rejected_total", {"reason": "QUEUE_FULL"})
        assert rejected == 1


async def test_refused_calls_leave_nothing_to_the_garbage_collector() -> None:
    async with running() as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with pytest.raises(grpc.aio.AioRpcError):
                    await server.record("full")
            left = sum(type(each) is QueueFull for each in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 1  # the last call may not be over yet


async def test_bug_is_internal_outside_and_whole_in_the_log() -> None:
    async with running() as server:
        with structlog.testing.capture_logs() as events:
            error = await failure(server.record("bug"))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in f"{error.details()}{error.trailing_metadata()}"
        assert reason_of(error) == "INTERNAL"
        (event,) = [e for e in events if e["log_level"] == "error"]
        assert str(event["exc_info"]) == "secret prompt"
        assert (await server.record()).stream_id == "1-0"


async def test_one_log_event_for_each_rpc() -> None:
    async with running() as server:
        with structlog.testing.capture_logs() as events:
            await server.record()
            await failure(server.record("full"))
        assert [(e["log_level"], e["code"]) for e in events] == [("debug", "OK"), ("debug", "RESOURCE_EXHAUSTED")]


@pytest.mark.parametrize("event_id", ["many", "wide"])
async def test_long_error_arrives(event_id: str) -> None:
    async with running() as server:
        error = await failure(server.record(event_id))
        assert reason_of(error) == {"many": "INVALID_REQUEST", "wide": "QUEUE_FULL"}[event_id]


@pytest.mark.parametrize("data", [NOT_UTF8, b"\xff\xff\xff", b"\x0a\x7f"])
async def test_bytes_that_are_no_request_are_an_invalid_argument(data: bytes) -> None:
    async with running() as server:
        error = await failure(server.channel.unary_unary("/rewardloop.v1.FeedbackService/Record")(data))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_REQUEST"
        stream = server.channel.stream_stream("/rewardloop.v1.RewardService/ScoreStream")()
        await stream.write(data)
        assert reason_of(await failure(stream.read())) == "INVALID_REQUEST"
        watch = server.channel.unary_stream("/rewardloop.v1.ModelService/WatchVersions")(b"\x0a\x01\xff")
        assert reason_of(await failure(watch.read())) == "INVALID_REQUEST"


async def test_error_in_a_stream_arrives_after_what_was_answered() -> None:
    async with running() as server:
        watch = server.watch("full")
        assert (await watch.read()).active.model == "reward"
        assert reason_of(await failure(watch.read())) == "QUEUE_FULL"
        stream = server.score_stream()
        await stream.write(reward_pb2.ScoreStreamRequest(request_id="a"))
        assert (await stream.read()).request_id == "a"
        await stream.write(reward_pb2.ScoreStreamRequest(request_id="full"))
        assert reason_of(await failure(stream.read())) == "QUEUE_FULL"
        assert server.counted("RewardService/ScoreStream", "RESOURCE_EXHAUSTED") == 1


async def test_stream_that_its_caller_ends_is_ok() -> None:
    async with running() as server:
        stream = server.score_stream()
        await stream.write(reward_pb2.ScoreStreamRequest(request_id="a"))
        await stream.done_writing()
        assert [reply.request_id async for reply in stream] == ["a"]
        assert server.counted("RewardService/ScoreStream", "OK") == 1


async def test_each_message_of_a_stream_is_worked_on_with_its_own_size() -> None:
    async with running() as server:
        stream = server.score_stream()
        for size in (10, 2 * LARGE_BYTES, 20):
            request = reward_pb2.ScoreStreamRequest(request_id="size")
            request.request.responses.append("a" * size)
            await stream.write(request)
            assert (await stream.read()).request_id == str(request.ByteSize())


async def test_status_that_a_method_chose_is_kept() -> None:
    async with running() as server:
        error = await failure(server.record("own"))
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "chosen by the method")
        await server.counts("FeedbackService/Record", "DATA_LOSS")


async def test_cancelled_calls_are_counted_as_such() -> None:
    async with running() as server:
        slow = asyncio.ensure_future(server.record("slow"))
        watch = server.watch()
        await watch.read()
        await asyncio.sleep(0.05)
        slow.cancel()
        watch.cancel()
        for method in ("FeedbackService/Record", "ModelService/WatchVersions"):
            await server.counts(method, "CANCELLED")


async def test_draining_refuses_what_is_new_and_finishes_what_runs() -> None:
    async with running() as server:
        slow = asyncio.ensure_future(server.record("slow"))
        stream = server.score_stream()
        await stream.write(reward_pb2.ScoreStreamRequest(request_id="slow"))
        watch = server.watch()
        await watch.read()
        await asyncio.sleep(0.02)
        server.interceptor.drain()

        refused = await failure(server.record())
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(refused) == "DRAINING"
        assert reason_of(await failure(watch.read())) == "DRAINING"
        assert (await stream.read()).request_id == "slow"
        assert reason_of(await failure(stream.read())) == "DRAINING"
        server.feedback.released.set()
        assert (await slow).stream_id == "1-0"


async def test_health_answers_while_draining() -> None:
    async with running() as server:
        server.interceptor.drain()
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_no_prompt_text_is_logged() -> None:
    async with running() as server:
        prompt = common_pb2.Prompt(text="secret")
        event = feedback_pb2.FeedbackEvent(event_id="full", prompt=prompt, responses=["secret"])
        stub: Any = feedback_pb2_grpc.FeedbackServiceStub(server.channel)
        with structlog.testing.capture_logs() as events:
            await failure(stub.Record(feedback_pb2.RecordRequest(event=event)))
        assert events
        assert "secret" not in str(events)
