"""What a client that keeps the HTTP door waiting can hold: its connection, and that not for long."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.another_user import another_users_socket, needs_root
from support.certificates import Authority

from rewardloop_client.fake import FakeRewardloop
from rewardloop_gateway.listening import DoorServer
from rewardloop_gateway.serving import server
from rewardloop_gateway.settings import GatewaySettings

SCORED = json.dumps({"prompt": "How?", "responses": ["so", "and so"]}).encode()
SOON_S = 30.0  # on a machine that does other things, too


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110  # the other thread's loop has no event for it
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[DoorServer, int]]:
    """A door over the fake on a loop of its own, as the command runs it, and its port."""
    fake = FakeRewardloop()
    fake.services = {f"rewardloop.v1.{name}Service": True for name in ("Reward", "Feedback", "Policy")}
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listening.getsockname()[1]
    made = server(GatewaySettings(listen=f"127.0.0.1:{port}", **settings), fake.as_async(), listening)
    thread = threading.Thread(target=uvloop.run, args=(made.serve(),))
    thread.start()
    await until(lambda: made.started)
    try:
        yield made, port
    finally:
        made.should_exit = made.force_exit = True
        await asyncio.to_thread(thread.join)


def post(port: int, *headers: str) -> bytes:
    """The head of a POST to /v1/score."""
    lines = ["POST /v1/score HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def opened(port: int, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def asked(port: int, data: bytes = b"") -> int:
    """The status of an answer: to a probe, or to what is sent."""
    probe = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    reader, writer = await opened(port, data or probe)
    line = await asyncio.wait_for(reader.readline(), SOON_S)
    writer.close()
    return int(line.split()[1])


def is_stalled(door: DoorServer) -> bool:
    return any(each.flow.write_paused for each in list(door.server_state.connections))


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the door hangs up."""
    return await asyncio.wait_for(reader.read(), SOON_S)


async def test_more_silent_connections_than_the_door_holds_keep_nobody_out() -> None:
    async with serving(max_requests=2) as (door, port):
        held = [await opened(port) for _ in range(150)]
        scored = post(port, f"Content-Length: {len(SCORED)}") + SCORED
        assert [await asked(port), await asked(port, scored)] == [200, 200]
        assert len(door.server_state.connections) < 70
        for _, writer in held:
            writer.close()


async def test_bodies_that_never_end_keep_nobody_out() -> None:
    begun = post(0, "Transfer-Encoding: chunked") + b"1\r\n{\r\n"
    async with serving(max_requests=2, hosts=["127.0.0.1"]) as (_, port):
        held = [await opened(port, begun) for _ in range(20)]
        scored = post(port, f"Content-Length: {len(SCORED)}") + SCORED
        assert [await asked(port), await asked(port, scored)] == [200, 200]
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: a", b"408"),
        (post(0, "Content-Length: 9") + b"{", b"408"),
        (post(0, "Transfer-Encoding: chunked") + b"1\r\n{\r\n", b"408"),
    ],
    ids=["nothing", "half a head", "half a body", "an endless body"],
)
async def test_what_does_not_come_in_time_is_hung_up(sent: bytes, status: bytes) -> None:
    async with serving(head_timeout_s=0.5, body_timeout_s=0.5) as (_, port):
        began = time.monotonic()
        reader, _ = await opened(port, sent)
        answer = await rest_of(reader)
        assert time.monotonic() - began >= 0.5
    assert answer[9:12] == status
    assert (b"TOO_SLOW" in answer) == bool(status)


async def test_a_head_that_drips_is_hung_up_like_one_that_stops() -> None:
    async with serving(head_timeout_s=1.0) as (_, port):
        reader, writer = await opened(port, b"GET /healthz HTTP/1.1\r\n")
        answer = asyncio.ensure_future(rest_of(reader))
        while not answer.done():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.05)
        assert answer.result()[9:12] == b"408"


async def test_a_head_without_end_is_refused_by_its_bytes() -> None:
    async with serving() as (_, port):
        reader, _ = await opened(port, b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        assert (await asyncio.wait_for(reader.read(12), SOON_S))[9:] == b"431"


async def test_a_slow_body_is_taken_as_long_as_it_keeps_the_least_rate() -> None:
    body = SCORED + b" " * 96 * 1024
    async with serving(body_timeout_s=0.5) as (_, port):
        reader, writer = await opened(port, post(port, f"Content-Length: {len(body)}"))
        for start in range(0, len(body), len(body) // 8):
            writer.write(body[start : start + len(body) // 8])
            await asyncio.sleep(0.25)
        assert (await asyncio.wait_for(reader.readline(), SOON_S)).split()[1] == b"200"


async def test_several_requests_of_one_connection_are_answered_and_a_silent_one_ends() -> None:
    probe = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with serving(head_timeout_s=0.5) as (_, port):
        reader, writer = await opened(port, probe + probe)
        writer.write(post(port, f"Content-Length: {len(SCORED)}") + SCORED)
        text = await rest_of(reader)
    assert text.count(b"HTTP/1.1 200") == 3


async def test_a_client_that_reads_no_answer_is_hung_up_and_takes_no_place() -> None:
    schema = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with serving(send_timeout_s=1.5, max_requests=1) as (door, port):
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(schema * 200)
        await until(lambda: is_stalled(door))
        assert await asked(port, schema) == 200
        await until(lambda: not is_stalled(door))
        deaf.close()


async def test_one_address_holds_a_bounded_number_of_connections() -> None:
    async with serving(max_connections_per_address=4) as (door, port):
        held = [await opened(port) for _ in range(12)]
        for reader, _ in held[:8]:
            assert await rest_of(reader) == b""
        await until(lambda: len(door.server_state.connections) == 4)
        assert await asked(port) == 200


async def test_a_handshake_that_does_not_come_is_hung_up(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("door", names=("127.0.0.1",))
    context = ssl.create_default_context(cafile=str(authority.path))
    async with serving(tls_cert=own.cert, tls_key=own.key, head_timeout_s=1.0) as (_, port):
        reader, _ = await opened(port)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert await rest_of(reader) == b""
        writer.close()


@needs_root
async def test_another_users_connections_take_no_room_of_the_own_ones() -> None:
    async with serving(own_user=True, max_requests=1) as (door, port):
        strangers = [another_users_socket(port) for _ in range(60)]
        assert await asked(port) == 200
        await asyncio.sleep(0.1)
        assert len(door.server_state.connections) <= 18
        reader, writer = await asyncio.open_connection(sock=another_users_socket(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), SOON_S)).split()[1] == b"403"
        writer.close()
        for each in strangers:
            each.close()
