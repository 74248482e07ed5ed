"""`rewardloop up` leaves nothing running: its terminal closes, its supervisor is killed, or its ports are taken."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_local.ports import free_port

PATIENCE_S = 180.0


@dataclass
class Up:
    """A `rewardloop up` on a store with a small reward model and no policy."""

    data: Path
    ports: dict[str, int] = field(
        default_factory=lambda: {
            name: free_port() for name in ("listen", "metrics-port", "trainer-metrics-port", "gateway")
        }
    )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['listen']}"

    def argv(self) -> list[str]:
        ports = {name: port for name, port in self.ports.items() if name != "gateway"}
        gateway = f"127.0.0.1:{self.ports['gateway']}"
        settings = {**ports, "listen": self.address, "gateway-listen": gateway, "data": self.data}
        settings |= {"serve-args": "--intra-op-threads 1 --no-spin", "train-args": "--torch-threads 1"}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "rewardloop_local.up", *flags]

    def recorded(self) -> dict[str, int]:
        """Names and pids of the processes that still run."""
        try:
            recorded = json.loads((self.data / "processes.json").read_text())
        except FileNotFoundError:
            return {}
        return {each["name"]: each["pid"] for each in recorded if _runs(each["pid"])}


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until_ended(pids: Mapping[str, int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := {name: pid for name, pid in pids.items() if _runs(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _down(up: Up) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rewardloop_local.down", "--data", str(up.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    data = tmp_path / "data"
    publish_sum_version(ModelStore(data / "models"))
    found = Up(data)
    yield found
    _down(found)


def _until_up(up: Up, log: Path, process: subprocess.Popen[bytes]) -> dict[str, int]:
    deadline = time.monotonic() + PATIENCE_S
    while "rewardloop is up" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    recorded = up.recorded()
    assert set(recorded) == {"supervisor", "redis-server", "serve", "gateway", "train"}
    return recorded


def _started(up: Up, log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            up.argv(), stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )


def _problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of its own that `rewardloop up` ended with."""
    return [line for line in done.stderr.splitlines() if line.startswith("rewardloop up: ")]


def test_after_its_supervisor_was_killed_the_next_one_names_what_runs_and_down_ends_it(up: Up, tmp_path: Path) -> None:
    first = _started(up, tmp_path / "log")
    pids = _until_up(up, tmp_path / "log", first)
    assert not any("unix://" in " ".join(psutil.Process(pid).cmdline()) for pid in pids.values())
    private = [up.data / "redis", up.data / "redis" / "password", up.data / "logs" / "serve.log", up.data / "trainer"]
    assert {path.name: path.stat().st_mode & 0o077 for path in private} == {path.name: 0 for path in private}
    assert "WARNING: other users of this machine may read" in (tmp_path / "log").read_text()  # the test made it
    first.kill()
    first.wait()
    del pids["supervisor"]
    assert all(map(_runs, pids.values()))

    second = subprocess.run(up.argv(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 1
    problem = _problems(second)
    assert len(problem) == 1
    assert all(f"{name} (pid {pid})" in problem[0] for name, pid in pids.items())
    assert f"'rewardloop down --data {up.data}'" in problem[0]
    assert "Traceback" not in second.stderr
    assert all(map(_runs, pids.values()))

    ended = _down(up)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [line.split()[1] for line in ended.stdout.splitlines()] == ["train", "gateway", "serve", "redis-server"]
    _until_ended(pids)

    third = _started(up, tmp_path / "third")
    pids = _until_up(up, tmp_path / "third", third)
    ended = _down(up)
    assert ended.stdout == f"ended supervisor (pid {third.pid})\n"
    assert third.wait(PATIENCE_S) == 0
    _until_ended(pids)


def test_when_its_terminal_closes_everything_ends(up: Up, tmp_path: Path) -> None:
    terminal, end = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(up.argv(), stdin=end, stdout=end, stderr=end, preexec_fn=take_terminal)
    os.close(end)
    shown = b""
    while b"rewardloop is up" not in shown:
        shown += os.read(terminal, 4096)
    pids = up.recorded()
    assert set(pids) == {"supervisor", "redis-server", "serve", "gateway", "train"}
    os.close(terminal)
    assert process.wait(PATIENCE_S) == 0
    _until_ended(pids)


def test_under_nohup_it_outlives_its_terminal(up: Up, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        process = subprocess.Popen(["nohup", *up.argv()], stdout=file, stderr=subprocess.STDOUT)
    pids = _until_up(up, tmp_path / "log", process)
    process.send_signal(1)
    time.sleep(1.0)
    assert all(map(_runs, pids.values()))


def test_taken_ports_are_named_one_a_line_and_nothing_starts(up: Up) -> None:
    with ExitStack() as taken:
        for name in ("listen", "trainer-metrics-port"):
            taken.enter_context(socket.create_server(("127.0.0.1", up.ports[name])))
        done = subprocess.run(up.argv(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert _problems(done) == [
        f"rewardloop up: port {up.ports['listen']} (--listen) is in use",
        f"rewardloop up: port {up.ports['trainer-metrics-port']} (--trainer-metrics-port) is in use",
    ]
    assert not (up.data / "logs").exists()
    assert up.recorded() == {}


def test_a_trainer_that_cannot_start_is_named_with_its_log(up: Up) -> None:
    argv = [*up.argv(), "--train-args=--metrics-host 192.0.2.1"]  # an address of another machine
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "rewardloop is up" not in done.stderr
    assert f"rewardloop up: train keeps dying, {up.data / 'logs' / 'train.log'}" in done.stderr
    assert "the metrics page cannot be served" in done.stderr
    assert up.recorded() == {}


def test_a_wrong_flag_of_the_trainer_is_named_before_a_process_starts(up: Up) -> None:
    argv = [*up.argv(), "--train-args=--reward.learning-rat 1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "rewardloop up: --train-args: unknown flag --reward.learning-rat" in done.stderr
    assert "did you mean --reward.learning-rate?" in done.stderr
    assert not (up.data / "logs" / "serve.log").exists()
    assert up.recorded() == {}


def test_a_proxy_of_the_environment_is_not_asked_for_loopback_addresses(up: Up, tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    proxies = {"http_proxy": closed, "https_proxy": closed, "grpc_proxy": closed, "no_proxy": "", "no_grpc_proxy": ""}
    process = _started(up, tmp_path / "log", proxies)
    _until_up(up, tmp_path / "log", process)
    with RewardloopClient(up.address) as client:
        assert client.score("alpha", ["beta"]).values
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def test_a_wrong_file_of_mixtures_is_named_before_a_model_is_exported(up: Up, tmp_path: Path) -> None:
    file = tmp_path / "mixtures.toml"
    file.write_text('version = "1"\n[mixtures.product.parts.harmless]\nfloor = 0.0\npenalty = 3.0\n')
    done = subprocess.run([*up.argv(), f"--mixtures={file}"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    (problem,) = _problems(done)
    assert str(file) in problem
    assert "harmless" in problem
    assert not (up.data / "logs" / "serve.log").exists()
