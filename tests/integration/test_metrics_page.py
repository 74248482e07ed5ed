"""The Prometheus page answers a scraper while other connections hold on to it."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from rewardloop.process import metrics_page
from rewardloop.process.metrics_page import MOST_CONNECTIONS, CannotListen, serve_metrics


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    registry = CollectorRegistry()
    Gauge("answer", "What it is.", registry=registry).set(42)
    end = serve_metrics(free, "127.0.0.1", registry)
    yield free
    end()


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return str(reply.read().decode())


def half_request(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
    return connection


def test_half_requests_hold_few_threads_and_no_scraper_back(port: int) -> None:
    before = threading.active_count()
    held = []
    for _ in range(200):
        held.append(half_request(port))
        if len(held) % 20 == 0:
            assert "answer 42" in page(port)
    assert threading.active_count() - before <= MOST_CONNECTIONS + 2
    assert "answer 42" in page(port)
    for connection in held:
        connection.close()


def test_a_connection_that_sends_a_byte_now_and_then_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "_MOST_S", 1.0)
    with half_request(port) as slow:
        slow.settimeout(0.2)
        started = time.monotonic()
        while not has_ended(slow):
            assert time.monotonic() - started < 10


def has_ended(connection: socket.socket) -> bool:
    """Send one more byte, and say whether the other side has closed the connection."""
    try:
        connection.sendall(b"a")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_busy_port_is_said(port: int) -> None:
    with pytest.raises(CannotListen, match=f"cannot listen on 127.0.0.1:{port} for metrics"):
        serve_metrics(port, "127.0.0.1", CollectorRegistry())


def test_port_0_serves_no_page() -> None:
    serve_metrics(0, "127.0.0.1", CollectorRegistry())()
