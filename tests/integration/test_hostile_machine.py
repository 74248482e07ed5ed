"""A serving process on a machine that lacks something: taken addresses, no temporary folder, a closed terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.processes import ServeProcess, serving, start_group
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient


@pytest.fixture
def server(tmp_path: Path, redis_url: str) -> ServeProcess:
    publish_sum_version(ModelStore(tmp_path / "models"))
    return ServeProcess(tmp_path / "models", redis_url, tmp_path / "serve.log")


def last_words(server: ServeProcess, status: int, *args: str, **env: str) -> str:
    """What a process says that does not start: one line, and no traceback."""
    ended = subprocess.run(
        [*server.argv(), *args], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr + ended.stdout
    return ended.stderr


def test_second_server_on_a_unix_socket_does_not_start_and_the_first_serves_on(server: ServeProcess) -> None:
    address = f"unix:{server.store.parent / 'socket'}"
    server.args = ("--listen", address)
    other = ServeProcess(server.store, server.redis_url, server.log_path, server.args)
    server.start()
    try:
        with RewardloopClient(address, timeout_s=30) as client:
            until_serving(client)
            assert "another process listens on" in last_words(other, 1)
            assert client.score("alpha", ["beta"]).scores
            server.kill()  # its file stays, and nobody listens there
            other.start()
            until_serving(client)
            assert client.score("alpha", ["beta"]).scores
    finally:
        server.kill()
        if other.process is not None:
            other.kill()


def until_serving(client: RewardloopClient) -> None:
    for _ in range(600):
        try:
            if client.health("rewardloop.v1.RewardService"):
                return
        except Exception:  # not listening yet
            pass
        time.sleep(0.1)
    raise AssertionError("not serving")


def test_taken_port_of_the_metrics_page_is_said_in_a_line(server: ServeProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server.metrics_port = taken.getsockname()[1]
        assert "for metrics" in last_words(server, 1)


def test_local_store_needs_no_temporary_folder(server: ServeProcess, tmp_path: Path) -> None:
    """As in a container with a read-only root: no folder of `tempfile` can be written."""
    code = (
        "import tempfile, sys\n"
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "tempfile.tempdir = None\n"
        "from rewardloop_server.app import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = server.argv()
    server.process = start_group([sys.executable, "-c", code, *argv[argv.index("--store") :]], server.log_path)
    try:
        server.wait_until_serving()
    finally:
        server.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_closed_terminal_and_sigterm_drain(server: ServeProcess, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # children inherit it, and nohup ignores it
    try:
        server.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        server.wait_until_serving()
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
    finally:
        server.kill()
    assert "draining" in server.log_path.read_text()


@pytest.mark.long
def test_client_that_stands_still_is_let_go_after_the_time_of_a_ping(server: ServeProcess, tmp_path: Path) -> None:
    args = ("--keepalive-s", "2", "--keepalive-timeout-s", "2")
    watch = (
        "import sys\n"
        "from rewardloop_client import RewardloopClient\n"
        "client = RewardloopClient(sys.argv[1], timeout_s=300)\n"
        "for version in client.watch_versions('reward'): print(version, flush=True)\n"
    )
    with serving(server.store, server.redis_url, server.log_path, *args) as running:
        assert running.process is not None
        caller = subprocess.Popen([sys.executable, "-c", watch, running.address], stdout=subprocess.PIPE)
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline()
            caller.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            while connections(running) and time.monotonic() - started < 90:
                time.sleep(0.2)
            seconds = time.monotonic() - started
        finally:
            caller.kill()
            caller.wait()
    print(f"gone after {seconds:.1f} s")
    assert seconds < 12


def connections(server: ServeProcess) -> int:
    assert server.process is not None
    open_ones = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(each.laddr.port == server.port and each.status == psutil.CONN_ESTABLISHED for each in open_ones)
