"""A port on loopback that takes the calls of one user of the machine alone."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from support.another_user import another_users_socket, needs_root
from support.doors import METHODS, connected, opened
from support.statuses import reason_of

from rewardloop.process.socket_owner import owner_of
from rewardloop_local.security import Security
from rewardloop_server.doors.listen import refusal
from rewardloop_server.doors.own_user import OwnUser
from rewardloop_server.doors.settings import DoorSettings

pytestmark = pytest.mark.skipif(not OwnUser.is_supported(), reason="needs Linux")


@asynccontextmanager
async def relayed_by_another_user(port: int) -> AsyncIterator[grpc.aio.Channel]:
    """A channel whose bytes reach the port through another user's socket."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection(sock=another_users_socket(port))
        await asyncio.gather(copy(reader, back), copy(onward, writer))

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()

    between = await asyncio.start_server(relay, "127.0.0.1")
    address = f"127.0.0.1:{between.sockets[0].getsockname()[1]}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    between.close()


async def status_of(channel: grpc.aio.Channel, method: str) -> tuple[grpc.StatusCode, str]:
    call = channel.stream_stream(method)([b""])
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), reason_of(error)
    return grpc.StatusCode.OK, ""


@needs_root
@pytest.mark.parametrize("method", METHODS)
async def test_another_user_of_the_machine_may_call_nothing(method: str) -> None:
    async with opened(own_user=True) as door, relayed_by_another_user(door.port) as channel:
        assert await status_of(channel, method) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")
        assert door.behind.calls == []


async def test_the_user_of_the_process_may_call_everything() -> None:
    async with connected(own_user=True) as (door, channel):
        for method in METHODS:
            code, reason = await status_of(channel, method)
            assert reason != "NOT_ALLOWED", (method, code)
        assert len(door.behind.calls) == len(METHODS)


@pytest.mark.parametrize(
    ("family", "to", "peer"),
    [
        (socket.AF_INET, "127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::1", "ipv6:%5B::1%5D:{}"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv4:127.0.0.1:{}"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "ipv6:%5B::ffff:127.0.0.1%5D:{}"),
    ],
)
def test_the_owner_of_a_connection_is_found(family: socket.AddressFamily, to: str, peer: str) -> None:
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = listening.getsockname()[1]
    with listening, socket.socket(family) as client:
        client.connect((to, port))
        theirs = client.getsockname()[1]
        assert owner_of(peer.format(theirs), port) == os.getuid()
        assert owner_of(peer.format(theirs), port + 1) is None
        assert owner_of(f"ipv4:127.0.0.2:{theirs}", port) is None
        client.close()
        assert owner_of(peer.format(theirs), port) is None  # such a socket is shown as root's


def test_a_port_that_others_can_reach_is_not_for_one_user() -> None:
    settings = DoorSettings(own_user=True, insecure_listen=True)
    assert "not on loopback" in (refusal("0.0.0.0:50051", settings) or "")
    assert refusal("127.0.0.1:50051", settings) is None


def test_a_deployment_without_callers_is_for_its_user_alone() -> None:
    assert "--own-user" in Security().door_args("127.0.0.1:50051")
    assert "--own-user" not in Security(any_user=True).door_args("127.0.0.1:50051")
    assert "--own-user" not in Security(callers=Path("callers.toml")).door_args("127.0.0.1:50051")
    assert "--own-user" not in Security().door_args("0.0.0.0:50051")
