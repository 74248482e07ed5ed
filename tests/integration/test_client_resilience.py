"""Deadlines shared by calls, channels, retries by gRPC, observers and interceptors; against real gRPC servers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry
from support.client_servers import Services, serving, status

from rewardloop.v1 import model_pb2, reward_pb2
from rewardloop_client import (
    AsyncRewardloopClient,
    Cancelled,
    Connection,
    DeadlineExceeded,
    FinishedCall,
    InvalidAddress,
    InvalidRequest,
    NoModel,
    QueueFull,
    RewardloopClient,
    Unavailable,
    deadline,
    keep_deadline,
    time_left,
)
from rewardloop_client import _calls as calls
from rewardloop_client._connection import service_config
from rewardloop_client._retry import RetryPolicy, RetryThrottle
from rewardloop_client.metrics import PrometheusCalls


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def address(services: Services) -> Iterator[str]:
    with serving(services) as made:
        yield made


# Deadlines

# A deadline crosses the wire as a timeout of a few digits, which gRPC rounds up.
ROUNDED_UP_S = 0.2


def test_the_nearest_of_nested_deadlines_bounds_every_call(services: Services, address: str) -> None:
    with RewardloopClient(address, timeout_s=50) as client:
        client.score("p", ["a"])
        with deadline(30):
            client.score("p", ["a"])
            with deadline(20):
                client.promote("reward", "2", timeout_s=5)
                client.score("p", ["a"])
            with deadline(40):
                list(client.score_stream([("p", ["a"])]))
            with deadline(None):
                client.score("p", ["a"])
    bounds = [50, 30, 5, 20, 30, 30]
    for left, bound in zip(services.seconds_left, bounds, strict=True):
        assert bound - 4 < (left or 0) < bound + ROUNDED_UP_S


def test_a_passed_deadline_sends_nothing_and_is_left_with_its_block(services: Services, address: str) -> None:
    with RewardloopClient(address) as client:
        with deadline(0), pytest.raises(DeadlineExceeded):
            client.score("p", ["a"])
        assert services.calls == []
        assert time_left() is None
        client.score("p", ["a"])


def test_one_deadline_is_spent_by_calls_in_turn(services: Services, address: str) -> None:
    services.failures = [lambda context: time.sleep(0.3)] * 100
    with RewardloopClient(address) as client, deadline(1.0):

        def ask_on() -> None:
            for _ in range(100):
                client.score("p", ["a"])

        with pytest.raises(DeadlineExceeded):
            ask_on()
    assert 1 <= len(services.calls) <= 4


def test_threads_keep_a_deadline_that_is_handed_to_them(services: Services, address: str) -> None:
    with RewardloopClient(address, timeout_s=50) as client, ThreadPoolExecutor(2) as pool:

        def ask(text: str) -> float | None:
            client.score("p", [text])
            return time_left()

        with deadline(20):
            kept = list(pool.map(keep_deadline(ask), ["a", "b", "c"]))
            lost = pool.submit(ask, "d").result()
        assert all(left is not None and left <= 20 for left in kept)
        assert lost is None
    assert sorted(left > 20 + ROUNDED_UP_S for left in services.seconds_left if left) == [False, False, False, True]


async def test_asyncio_tasks_inherit_a_deadline(services: Services, address: str) -> None:
    async with AsyncRewardloopClient(address, timeout_s=50) as client:
        with deadline(20):
            await asyncio.gather(*(client.score("p", ["a"]) for _ in range(3)))
            assert (await asyncio.to_thread(time_left) or 99) <= 20
        await client.score("p", ["a"])
    assert sorted(left > 20 + ROUNDED_UP_S for left in services.seconds_left if left) == [False, False, False, True]


def test_a_servicer_passes_its_callers_deadline_on(services: Services, address: str) -> None:
    front = Services("front")
    with RewardloopClient(address, timeout_s=50) as behind:

        def relay(context: grpc.ServicerContext) -> None:
            with deadline(context.time_remaining()):
                behind.score("p", ["a"])

        front.failures = [relay]
        with serving(front) as near, RewardloopClient(near, timeout_s=15) as client:
            client.score("p", ["a"])
    assert 0 < (services.seconds_left[0] or 99) <= 15 + ROUNDED_UP_S


# Channels


def test_more_channels_are_more_connections(services: Services, address: str) -> None:
    with RewardloopClient(address, connection=Connection(channels=3)) as client:
        for _ in range(9):
            client.score("p", ["a"])
    assert len(services.peers) == 3
    services.peers.clear()
    with RewardloopClient(address) as client:
        for _ in range(9):
            client.score("p", ["a"])
    assert len(services.peers) == 1


def test_an_unhealthy_replica_gets_no_calls_and_gets_them_again_when_well() -> None:
    service = "rewardloop.v1.RewardService"
    ill, well = Services("ill"), Services("well")
    with serving(ill) as one, serving(well) as two:
        ill.health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        with RewardloopClient([one, two], connection=Connection(skip_unhealthy=service), timeout_s=20) as client:
            for _ in range(20):
                assert client.score("p", ["a"]).model_version.version == "well"
            ill.health.set(service, health_pb2.HealthCheckResponse.SERVING)
            until = time.monotonic() + 30
            while not ill.calls and time.monotonic() < until:
                client.score("p", ["a"])
            assert ill.calls


@contextmanager
def _wire_that_can_be_cut(address: str) -> Iterator[tuple[str, threading.Event]]:
    """Another address of a server; once the event is set, nothing passes, and no end is told that."""
    cut = threading.Event()
    host, _, port = address.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not cut.is_set():
                    sink.sendall(data)
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            opened.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", cut
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in opened:
            each.close()


def test_keepalive_finds_a_connection_that_died_silently(services: Services, address: str) -> None:
    connection = Connection(keepalive_s=0.5, keepalive_timeout_s=0.5)
    with (
        _wire_that_can_be_cut(address) as (wire, cut),
        RewardloopClient(wire, connection=connection, max_attempts=1) as client,
    ):
        client.score("p", ["a"], timeout_s=20)
        cut.set()
        with pytest.raises(Unavailable):  # and not DeadlineExceeded
            client.score("p", ["a"], timeout_s=60)


def test_an_xds_name_needs_a_bootstrap_and_is_then_grpcs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP_CONFIG", raising=False)
    with pytest.raises(InvalidAddress, match="GRPC_XDS_BOOTSTRAP"):
        RewardloopClient("xds:///rewardloop")
    bootstrap = {"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}]}
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", json.dumps({**bootstrap, "node": {"id": "test"}}))
    with RewardloopClient("xds:///rewardloop", max_attempts=1) as client, pytest.raises(Unavailable, match="xDS"):
        client.score("p", ["a"], timeout_s=30)


# Who repeats what


def test_grpc_repeats_instead_of_the_client_when_told_to(services: Services, address: str) -> None:
    seen: list[FinishedCall] = []
    with RewardloopClient(address, connection=Connection(retries="grpc"), observer=seen.append) as client:
        services.failures = [status("NO_MODEL")] * 2
        assert client.score("p", ["ab"]).values == (2,)
        assert (services.calls, seen[0].attempts) == (["Score"] * 3, 1)
        assert [m.get("grpc-previous-rpc-attempts") for m in services.metadata] == [None, "1", "2"]

        services.calls.clear()
        services.failures = [status("NO_MODEL")] * 9
        with pytest.raises(NoModel):
            client.score("p", ["a"])
        assert len(services.calls) == 4

        services.calls.clear()
        services.failures = [status("NO_MODEL")]
        with pytest.raises(NoModel):
            client.rollback("reward")
        assert services.calls == ["Rollback"]

        services.calls.clear()
        services.failures = [status("QUEUE_FULL", retry_after_s=0.001)]  # by reason: the client's part in either mode
        client.score("p", ["a"])
        assert services.calls == ["Score"] * 2


def test_what_a_server_cancels_is_repeated_and_what_closing_the_client_cancels_is_not(
    services: Services, address: str
) -> None:
    services.failures = [lambda context: context.cancel() or time.sleep(0.1)]
    with RewardloopClient(address) as client:
        assert client.score("p", ["ab"]).values == (2,)
        assert services.calls == ["Score"] * 2

        services.failures = [lambda context: client.close() or time.sleep(1)]
        with pytest.raises(Cancelled):
            client.score("p", ["a"])
    assert services.calls == ["Score"] * 3


def test_a_stream_that_fails_before_its_first_reply_is_begun_again(services: Services, address: str) -> None:
    services.failures = [status("NO_MODEL")]
    with RewardloopClient(address, timeout_s=20) as client:
        assert [o.values for o in client.score_stream([("p", ["ab"]), ("p", ["abc"])])] == [(2,), (3,)]
    assert services.calls == ["ScoreStream"] * 2


def test_the_service_config_for_clients_in_other_languages_is_this_ones() -> None:
    shipped = Path(__file__).parents[2] / "client/service_config.json"
    assert json.loads(shipped.read_text()) == json.loads(service_config(RetryPolicy(max_attempts=5)))


def test_any_grpc_client_takes_the_service_config(services: Services, address: str) -> None:
    options = [("grpc.service_config", service_config(RetryPolicy(max_attempts=9))), ("grpc.enable_retries", 1)]
    with grpc.insecure_channel(address, options) as channel:
        score = channel.unary_unary(calls.SCORE, None, reward_pb2.ScoreResponse.FromString)
        rollback = channel.unary_unary(calls.ROLLBACK, None, model_pb2.RollbackResponse.FromString)
        services.failures = [status("NO_MODEL")] * 9
        with pytest.raises(grpc.RpcError):
            score(b"", timeout=30)
        assert len(services.calls) == 5
        with pytest.raises(grpc.RpcError):
            rollback(b"", timeout=30)
        assert services.calls[5:] == ["Rollback"]


def test_retries_end_while_most_calls_fail_and_come_back(services: Services, address: str) -> None:
    with RewardloopClient(address, max_attempts=2) as client:
        services.failures = [status("QUEUE_FULL", retry_after_s=0.0001)] * 1000
        for _ in range(40):
            with pytest.raises(QueueFull):
                client.score("p", ["a"])
        assert len(services.calls) == 40 + 25  # the 50th failure of 100 tokens is the last that is tried again, or not
        services.failures.clear()
        for _ in range(200):
            client.score("p", ["a"])
        services.calls.clear()
        services.failures = [status("QUEUE_FULL", retry_after_s=0.0001)]
        client.score("p", ["a"])
        assert len(services.calls) == 2


def test_the_throttle_is_that_of_grpc() -> None:
    throttle = RetryThrottle()
    assert [throttle.failed() for _ in range(51)] == [True] * 49 + [False] * 2
    for _ in range(20):
        throttle.succeeded()
    assert [throttle.failed(), throttle.failed()] == [False, False]


# What others see of calls


def test_an_observer_is_told_of_each_call_once(services: Services, address: str) -> None:
    seen: list[FinishedCall] = []
    with RewardloopClient(address, observer=seen.append) as client:
        services.failures = [status("QUEUE_FULL", retry_after_s=0.001)]
        client.score("p", ["a"])
        services.failures = [status("INVALID_REQUEST")]
        client.record_batch([])  # nothing to send is no call
        with pytest.raises(InvalidRequest):
            client.score("p", ["a"])
        list(client.score_stream([("p", ["a"])]))
        stream = client.score_stream(iter(lambda: ("p", ["a"]), None), max_in_flight=2)
        next(stream)
        stream.close()
    assert [(c.method.partition("/")[2], c.code, c.reason, c.attempts) for c in seen] == [
        ("Score", "OK", "", 2),
        ("Score", "INVALID_ARGUMENT", "INVALID_REQUEST", 1),
        ("ScoreStream", "OK", "", 1),
        ("ScoreStream", "CANCELLED", "", 1),
    ]
    assert all(call.seconds > 0 for call in seen)


async def test_a_cancelled_call_is_told_as_cancelled(services: Services, address: str) -> None:
    seen: list[FinishedCall] = []
    services.failures = [lambda context: time.sleep(1)]
    async with AsyncRewardloopClient(address, observer=seen.append) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.score("p", ["a"])
    assert [call.code for call in seen] == ["CANCELLED"]


def test_an_observer_that_fails_does_not_fail_the_call(
    services: Services, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: FinishedCall) -> None:
        raise LookupError("in the observer")

    with RewardloopClient(address, observer=broken) as client:
        assert client.score("p", ["ab"]).values == (2,)
    assert "in the observer" in caplog.text


def test_calls_are_counted_for_prometheus(services: Services, address: str) -> None:
    registry = CollectorRegistry()
    services.failures = [status("QUEUE_FULL", retry_after_s=0.001)]
    with RewardloopClient(address, observer=PrometheusCalls(registry)) as client:
        client.score("p", ["a"])
        client.score("p", ["a"])
    method = {"method": "rewardloop.v1.RewardService/Score"}
    assert registry.get_sample_value("rewardloop_client_calls_total", {**method, "code": "OK"}) == 2
    assert registry.get_sample_value("rewardloop_client_attempts_total", method) == 3
    assert registry.get_sample_value("rewardloop_client_call_seconds_count", method) == 2


class _Tracer(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_traced(details), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(_traced(details), requests)


class _AioTracer(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_traced(details), request)


class _AioStreamTracer(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_traced(details), requests)


def _traced(details: Any) -> Any:
    return details._replace(metadata=(("traceparent", "00-1"),))


def test_interceptors_see_every_attempt(services: Services, address: str) -> None:
    services.failures = [status("QUEUE_FULL", retry_after_s=0.001)]
    with RewardloopClient(address, interceptors=[_Tracer()]) as client:
        client.score("p", ["a"])
        list(client.score_stream([("p", ["a"])]))
    assert [m.get("traceparent") for m in services.metadata] == ["00-1"] * 3


async def test_interceptors_of_the_asyncio_client_do_too(services: Services, address: str) -> None:
    async with AsyncRewardloopClient(address, interceptors=[_AioTracer(), _AioStreamTracer()]) as client:
        await client.score("p", ["a"])
        assert [o.values async for o in client.score_stream([("p", ["a"])])] == [(1,)]
    assert [m.get("traceparent") for m in services.metadata] == ["00-1"] * 2
