"""What a caller without credentials can do to health and reflection: use them, and not more than its share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc._cython
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from support.doors import connected, opened
from support.statuses import failure, reason_of

from rewardloop_server.doors.listen import channel_options
from rewardloop_server.doors.settings import DoorSettings

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING = health_pb2.HealthCheckResponse.SERVING
REQUEST = health_pb2.HealthCheckRequest()


async def watching(channel: grpc.aio.Channel) -> Any:
    """A watch whose first reply has come."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(REQUEST)
    assert (await watch.read()).status == SERVING
    return watch


async def refused(watch: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in watch:
            pass
    return error.value


async def until(stub: Any, refusal: str | None) -> None:
    """Call Check until it is refused for this reason, or answered if that is None."""
    async with asyncio.timeout(10):
        while True:
            (reply,) = await asyncio.gather(stub.Check(REQUEST), return_exceptions=True)
            if refusal in str(reply) if refusal else isinstance(reply, health_pb2.HealthCheckResponse):
                return
            await asyncio.sleep(0.02)


async def test_watches_of_one_connection_are_bounded_and_end_with_their_callers() -> None:
    async with connected(open_calls_per_connection=3) as (door, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [await watching(channel) for _ in range(3)]
        error = await refused(stub.Watch(REQUEST))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_SPENT")
        assert "on this connection" in str(error.details())
        assert door.figure("rewardloop_quota_refusals_total", caller="anybody", quota="concurrent") == 1
        watches.pop().cancel()
        await until(stub, None)


async def test_one_address_cannot_take_the_share_of_the_whole_with_many_connections() -> None:
    async with opened(open_calls_per_connection=2, open_calls_per_address=3) as door:
        channels = [
            grpc.aio.insecure_channel(door.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)
        ]
        held = [await watching(channels[0]), await watching(channels[0]), await watching(channels[1])]
        error = await refused(health_pb2_grpc.HealthStub(channels[1]).Watch(REQUEST))
        assert "from this address" in str(error.details())
        assert len(held) == 3
        for channel in channels:
            await channel.close()


async def test_calls_whose_message_never_comes_count_and_end() -> None:
    async with connected(open_calls_per_connection=2) as (_, channel):
        silent = [channel.stream_stream(CHECK)() for _ in range(2)]
        await asyncio.gather(*(call.wait_for_connection() for call in silent))
        stub = health_pb2_grpc.HealthStub(channel)
        await until(stub, "on this connection")
        codes = [await call.code() for call in silent]
        assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 2
        assert (await stub.Check(REQUEST)).status == SERVING


async def test_a_large_message_is_refused_and_small_ones_are_answered() -> None:
    async with connected() as (_, channel):
        large = health_pb2.HealthCheckRequest(service="x" * 5000)
        error = await failure(health_pb2_grpc.HealthStub(channel).Check(large))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "more than 4096" in str(error.details())
        unknown = await failure(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="no")))
        assert unknown.code() is grpc.StatusCode.NOT_FOUND


async def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    async with connected() as (_, channel):
        error = await failure(channel.unary_unary(CHECK)(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [CHECK, "/rewardloop.v1.RewardService/Score"])
async def test_compressed_messages_are_taken_only_if_that_is_asked_for(method: str) -> None:
    async def send(**settings: Any) -> grpc.StatusCode:
        async with connected(**settings) as (_, channel):
            call = channel.unary_unary(method)(b"\x0a\x00" * 100, compression=grpc.Compression.Gzip)
            return await call.code()

    assert await send() is grpc.StatusCode.UNIMPLEMENTED
    assert await send(accept_compression=True) is not grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services(version: str) -> None:
    async with connected() as (_, channel):
        method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call = channel.stream_stream(
            method,
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="")] * 2))
        replies = [reply async for reply in call]
        assert len(replies) == 2
        assert "grpc.health.v1.Health" in [each.name for each in replies[0].list_services_response.service]


async def test_health_lists_every_service() -> None:
    async with connected() as (_, channel):
        listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
        assert {name: reply.status for name, reply in listed.statuses.items()} == {"": SERVING}


def test_every_option_of_a_listening_server_is_known_to_the_installed_grpc() -> None:
    (library,) = Path(grpc._cython.__file__).parent.glob("cygrpc*.so")
    known = library.read_bytes()
    names = [name for name, _ in channel_options(DoorSettings(), 1024)]
    assert [name for name in names if name.encode() not in known] == []
