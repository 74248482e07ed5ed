"""What a hostile connection can hold of a real serving process: little, and not for long. Others are served meanwhile.

The connections are raw sockets that speak a piece of HTTP/2 and then nothing more.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient, RewardloopError, Unreachable

pytestmark = pytest.mark.long

CONNECTIONS = 48
MIB = 2**20
FLAGS = ("--handshake-timeout-s", "0.5", "--connection-idle-s", "1", "--max-connection-age-s", "2")
FLAGS += ("--connection-age-grace-s", "0.5", "--max-connections", "64", "--max-message-bytes", str(MIB))
FLAGS += ("--max-streams-per-connection", "100", "--max-rpcs", "300")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, DATA = 4, 1, 0
END_HEADERS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("limits")
    publish_sum_version(ModelStore(directory / "models"))
    with serving(directory / "models", redis_url, directory / "serve.log", *FLAGS) as process:
        with RewardloopClient(process.address) as client:
            client.score("alpha", ["beta"])
        yield process


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """One header, without compression (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


HEADER_BLOCK = b"".join(
    literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/rewardloop.v1.RewardService/Score"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
)
BEGUN = PREFACE + frame(SETTINGS, 0, 0, b"")
REQUEST = frame(HEADERS, END_HEADERS, 1, HEADER_BLOCK)

ATTACKS = {
    "says nothing": b"",
    "never finishes the preface": PREFACE[:10],
    "never sends its settings": PREFACE,
    "begins no request": BEGUN,
    "never finishes a frame": BEGUN + REQUEST[:20],
    "never finishes its headers": BEGUN + frame(HEADERS, 0, 1, HEADER_BLOCK[:60]),
    "never sends its message": BEGUN + REQUEST,
    "never finishes its message": BEGUN
    + REQUEST
    + frame(DATA, 0, 1, b"\x00" + struct.pack(">I", MIB - 1) + b"x" * 999),
    "announces 2 GiB": BEGUN + REQUEST + frame(DATA, 0, 1, b"\x00\x7f\xff\xff\xff" + b"x" * 9),
    "speaks TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
}


def hung_up(connection: socket.socket) -> bool:
    """Whether the server has closed it; what it said before is thrown away."""
    connection.settimeout(0.01)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def until(what: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def served(server: ServeProcess) -> None:
    with RewardloopClient(server.address, timeout_s=30) as client:
        client.score("alpha", ["beta"])


def test_stalled_connections_are_hung_up_and_others_served(server: ServeProcess) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    until(lambda: _open(process, server.port) == 0)
    with contextlib.ExitStack() as stack:
        stalled = []
        for _ in range(5):
            for attack, said in ATTACKS.items():
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
                connection.sendall(said)
                stalled.append((attack, connection))
        served(server)
        deadline = time.monotonic() + 60
        while stalled:
            assert time.monotonic() < deadline, {attack for attack, _ in stalled}
            stalled = [(attack, connection) for attack, connection in stalled if not hung_up(connection)]
    served(server)
    until(lambda: _open(process, server.port) == 0)


def _open(process: psutil.Process, port: int) -> int:
    """Connections that the server has open."""
    return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in process.net_connections(kind="tcp4"))


def test_memory_and_descriptors_stay_flat_under_stalled_connections(server: ServeProcess) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    payload = ATTACKS["never finishes its message"]

    def attack() -> None:
        connections = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.sendall(payload)
        for connection in connections:
            connection.close()

    def settled() -> bool:
        return _open(process, server.port) == 0

    for _ in range(5):
        attack()
        until(settled)
    memory, files = process.memory_info().rss, process.num_fds()
    for _ in range(20):
        attack()
        until(settled)
    served(server)
    assert process.memory_info().rss - memory < 24 * MIB
    assert process.num_fds() <= files + 4


def test_oversized_messages_are_refused_and_not_kept(server: ServeProcess) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    large = bytes(4 * MIB)

    def send() -> None:
        with grpc.insecure_channel(server.address) as channel:
            method = channel.unary_unary("/rewardloop.v1.RewardService/Score")
            for _ in range(5):
                with pytest.raises(grpc.RpcError) as refused:
                    method(large, timeout=30)
                if refused.value.code() is grpc.StatusCode.UNAVAILABLE:
                    return  # the connection's age was up
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    for _ in range(2):
        send()
    before = process.memory_info().rss
    for _ in range(4):
        send()
    served(server)
    assert process.memory_info().rss - before < 32 * MIB


def test_connections_beyond_the_bound_are_closed_and_those_within_served(server: ServeProcess) -> None:
    with RewardloopClient(server.address, timeout_s=30) as client, contextlib.ExitStack() as stack:
        client.score("alpha", ["beta"])
        extra = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30)) for _ in range(100)]
        until(lambda: sum(hung_up(each) for each in extra) >= 30)
        client.score("alpha", ["beta"])
    until(lambda: _is_served(server))


def test_requests_in_flight_are_bounded_over_all_connections(server: ServeProcess) -> None:
    requests = b"".join(frame(HEADERS, END_HEADERS, 1 + 2 * number, HEADER_BLOCK) for number in range(100))
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
            connection.sendall(BEGUN + requests)

        def refused() -> bool:
            try:
                with RewardloopClient(server.address, timeout_s=10, max_attempts=1) as client:
                    client.score("alpha", ["beta"])
            except RewardloopError as error:
                return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        until(refused)
        until(lambda: _is_served(server))  # the stalled ones have been hung up


def _is_served(server: ServeProcess) -> bool:
    with contextlib.suppress(RewardloopError):
        served(server)
        return True
    return False


def test_loopback_alone_without_tls(tmp_path: Path, redis_url: str) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    process = ServeProcess(tmp_path / "models", redis_url, tmp_path / "serve.log")
    process.args = ("--listen", f"0.0.0.0:{process.port}")  # the last one counts
    process.start()
    assert process.process is not None
    assert process.process.wait(60) == 1
    text = (tmp_path / "serve.log").read_text()
    assert "is not on loopback" in text
    assert "--insecure-listen" in text
    with pytest.raises(Unreachable), RewardloopClient(process.address, timeout_s=2, max_attempts=1) as client:
        client.score("alpha", ["beta"])
