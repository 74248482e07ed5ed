"""Servers that go away under load, and names with several addresses; real gRPC servers, a real DNS reply."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from support.client_servers import Services, serving, start, status

from rewardloop_client import AsyncRewardloopClient, FinishedCall, Hedging, RewardloopClient
from rewardloop_local.ports import free_port


def _slowly(context: grpc.ServicerContext) -> None:
    time.sleep(0.02)


class _Slow(Services):
    """Every call takes a while, so that some are always in flight."""

    def _begin(self, method: str, context: grpc.ServicerContext) -> None:
        super()._begin(method, context)
        _slowly(context)


def _until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.01)


def _until_asked(times: int, *replicas: Services) -> None:
    """Until they got so many more calls, together."""
    before = sum(len(each.calls) for each in replicas)
    _until(lambda: sum(len(each.calls) for each in replicas) >= before + times, f"{times} more calls")


@pytest.mark.parametrize("hedging", [None, Hedging(after_s=0.5)])
def test_no_call_fails_while_servers_are_drained_one_after_the_other(hedging: Hedging | None) -> None:
    seen: list[FinishedCall] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    replicas = [_Slow(str(n)) for n in range(3)]
    started = [start(services) for services in replicas]
    addresses = [address for _, address in started]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    with RewardloopClient(addresses, hedging=hedging, timeout_s=30, observer=seen.append) as client:

        def ask() -> None:
            while not stop.is_set():
                try:
                    client.score("p", ["a"])
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for n, services in enumerate(replicas):
                others = [each for each in replicas if each is not services]
                _until_asked(10, services)
                started[n][0].stop(grace=10).wait()  # GOAWAY; what is in flight may finish
                _until_asked(20, *others)
                started[n] = start(services, port=ports[n])
                _until_asked(1, services)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for server, _ in started:
                server.stop(None).wait()
    assert failures == []
    assert {call.code for call in seen} == {"OK"}


def test_a_first_refusal_for_draining_is_tried_again_without_the_wait_that_it_asks_for() -> None:
    going, staying = Services("going"), Services("staying")
    going.failures = [status("DRAINING", retry_after_s=60)]
    with serving(going) as one, serving(staying) as two, RewardloopClient([one, two], timeout_s=30) as client:
        while going.failures:
            client.score("p", ["a"])


async def test_no_asyncio_call_fails_while_a_server_is_drained() -> None:
    left, right = _Slow("left"), _Slow("right")
    server, going = start(left)
    with serving(right) as staying:
        async with AsyncRewardloopClient([going, staying], timeout_s=30) as client:
            stop = asyncio.Event()

            async def ask() -> None:
                while not stop.is_set():
                    await client.score("p", ["a"])

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(ask())
                await asyncio.to_thread(_until_asked, 10, left)
                await asyncio.to_thread(lambda: server.stop(grace=10).wait())
                await asyncio.to_thread(_until_asked, 20, right)
                stop.set()


@contextmanager
def _dns_server(addresses: list[str]) -> Iterator[int]:
    """Answers every A question with ``addresses`` as they are at that moment, and every other with nothing."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            query, sender = listener.recvfrom(4096)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
            found = [socket.inet_aton(each) for each in addresses] if kind == 1 else []
            reply = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(found), 0, 0) + query[12:end]
            reply += b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + each for each in found)
            listener.sendto(reply, sender)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield port
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", port))
        thread.join(10)
        listener.close()


def test_calls_are_spread_over_the_addresses_of_a_name_and_follow_it() -> None:
    """As with a headless Service of Kubernetes: replicas that come later are found when a connection ends."""
    port = free_port()
    old, new = Services("old"), Services("new")
    names = ["127.0.0.1", "127.0.0.2"]
    first = start(old, port=port, host="127.0.0.1")
    second = start(Services("other"), port=port, host="127.0.0.2")
    with _dns_server(names) as dns, RewardloopClient(f"dns://127.0.0.1:{dns}/replicas.test:{port}") as client:

        def version() -> str:
            return client.score("p", ["a"]).model_version.version

        seen: set[str] = set()
        _until(lambda: seen.add(version()) or seen == {"old", "other"}, "both are asked")
        third = start(new, port=port, host="127.0.0.3")
        names[:] = ["127.0.0.2", "127.0.0.3"]
        first[0].stop(grace=5).wait()
        seen.clear()
        _until(lambda: seen.add(version()) or "new" in seen, "the new one is found")
        assert "old" not in seen
        for server, _ in (second, third):
            server.stop(None).wait()
