"""What `rewardloop up` looks at before it starts: its ports, and processes that an earlier one has left."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_demo.run import run
from rewardloop_demo.settings import DemoSettings
from rewardloop_local import down, up
from rewardloop_local.deployment import Deployment
from rewardloop_local.plan import DeploymentError, DeploymentPlan
from rewardloop_local.ports import free_port, port_problems
from rewardloop_local.process_file import SUPERVISOR, ProcessFile
from rewardloop_local.proxies import exempt_loopback

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def _plan(data: Path, **fields: object) -> DeploymentPlan:
    ports = [free_port() for _ in range(5)]
    free = {
        "listen": f"127.0.0.1:{ports[0]}",
        "policy_listen": f"127.0.0.1:{ports[1]}",
        "metrics_port": ports[2],
        "trainer_metrics_port": ports[3],
        "policy_metrics_port": ports[4],
    }
    return DeploymentPlan(data=data, **{**free, **fields})  # type: ignore[arg-type]


def test_free_ports_are_no_problem(tmp_path: Path) -> None:
    assert port_problems(_plan(tmp_path)) == []
    assert port_problems(_plan(tmp_path, metrics_port=0, trainer_metrics_port=0)) == []


def test_free_ports_are_none_that_the_kernel_gives_to_outgoing_connections() -> None:
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(outgoing.read_text().split()[0]) if outgoing.exists() else 32_768
    ports = [free_port() for _ in range(200)]
    assert all(1024 < port < max(first, 10_241) for port in ports)
    assert len(set(ports)) > 150


def test_each_busy_port_is_named_with_its_flag(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    with ExitStack() as stack:
        for port in (int(plan.listen.rpartition(":")[2]), plan.trainer_metrics_port):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        assert port_problems(plan) == [
            f"port {plan.listen.rpartition(':')[2]} (--listen) is in use",
            f"port {plan.trainer_metrics_port} (--trainer-metrics-port) is in use",
        ]


async def test_a_refused_start_does_not_say_that_it_stops_anything(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    said: list[str] = []
    deployment = Deployment(plan, said.append)
    with socket.create_server(("127.0.0.1", plan.metrics_port)):
        with pytest.raises(DeploymentError, match="is in use"):
            await deployment.start()
        await deployment.stop()
    assert said == []


def test_a_port_that_is_given_twice_is_named(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    twice = _plan(tmp_path, metrics_port=plan.metrics_port, trainer_metrics_port=plan.metrics_port)
    assert port_problems(twice) == [
        f"port {plan.metrics_port} is given to --metrics-port and to --trainer-metrics-port"
    ]


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    (problem,) = port_problems(_plan(tmp_path, listen="192.0.2.1:50051"))
    assert problem.startswith("port 50051 (--listen) cannot be opened on 192.0.2.1")


def test_ports_of_the_policy_worker_do_not_matter_without_a_policy(tmp_path: Path) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    plan = _plan(tmp_path)
    with socket.create_server(("127.0.0.1", plan.policy_metrics_port)):
        assert port_problems(plan) == []


async def _until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER)
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_found_until_it_ends(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    file = ProcessFile(tmp_path)
    assert file.running() == []
    file.record("serve", sleeper.pid)
    assert [(each.name, each.pid) for each in file.running()] == [("serve", sleeper.pid)]
    assert [each.pid for each in ProcessFile(tmp_path).running()] == [sleeper.pid]
    sleeper.kill()
    sleeper.wait()
    assert file.running() == []


def test_a_process_that_was_started_again_replaces_the_earlier_one(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    file = ProcessFile(tmp_path)
    for pid in (os.getpid(), sleeper.pid):
        file.record("serve", pid)
    assert [each.pid for each in file.running()] == [sleeper.pid]


async def test_a_redis_that_restarts_on_a_full_disk_is_watched_recorded_later_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = False
    fsync = os.fsync

    def fsync_on_a_full_disk(descriptor: int) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("rewardloop_local.process_file.os.fsync", fsync_on_a_full_disk)
    deployment = Deployment(_plan(tmp_path), on_phase=lambda phase: None)
    try:
        await deployment._start_redis()
        (before,) = deployment.pids()
        is_full = True
        os.kill(before, signal.SIGKILL)
        await _until(lambda: deployment.pids() not in ([], [before]))
        (unrecorded,) = deployment.pids()
        is_full = False
        await _until(lambda: [each.pid for each in ProcessFile(tmp_path).running()] == [unrecorded])
        os.kill(unrecorded, signal.SIGKILL)
        await _until(lambda: deployment.pids() not in ([], [unrecorded]))
        await _until(lambda: [each.pid for each in ProcessFile(tmp_path).running()] == deployment.pids())
        (last,) = deployment.pids()
    finally:
        await deployment.stop()
    assert not psutil.pid_exists(last)


def test_down_on_a_copy_of_a_data_directory_leaves_the_original_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    original, copied, moved = tmp_path / "original", tmp_path / "copied", tmp_path / "moved"
    original.mkdir()
    ProcessFile(original).record("serve", sleeper.pid)
    shutil.copytree(original, copied)
    assert down.main(["--data", str(copied)]) == 0
    assert capsys.readouterr().out == f"no rewardloop runs on {copied}\n"
    assert sleeper.poll() is None
    original.rename(moved)
    assert down.main(["--data", str(moved)]) == 0
    assert sleeper.wait(10) == -signal.SIGTERM


def test_down_says_that_processes_belong_to_another_user(
    tmp_path: Path,
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    ProcessFile(tmp_path).record("serve", sleeper.pid)
    for name in ("exe", "terminate", "kill"):  # as the system answers a user who is not root
        monkeypatch.setattr(psutil.Process, name, refuse)
    assert down.main(["--data", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rewardloop down: serve (pid {sleeper.pid}) belongs to user {psutil.Process().username()}")
    assert sleeper.poll() is None
    assert (tmp_path / "processes.json").exists()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_down_on_what_is_no_directory_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert down.main(["--data", str(tmp_path / name)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"rewardloop down: {tmp_path / name / 'processes.json'} cannot be read: Not a directory"


def test_down_ends_processes_whose_file_it_cannot_delete(
    tmp_path: Path,
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    ProcessFile(tmp_path).record("serve", sleeper.pid)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert down.main(["--data", str(tmp_path)]) == 0
    assert sleeper.wait(10) == -signal.SIGTERM
    out, err = capsys.readouterr()
    assert out == f"ended serve (pid {sleeper.pid})\n"
    (line,) = err.splitlines()
    assert "processes.json" in line
    assert "Read-only file system" in line


@pytest.mark.parametrize("change", [{"started": 1_000.0}, {"executable": "/usr/bin/other"}])
def test_another_process_with_a_recorded_pid_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    ProcessFile(tmp_path).record("serve", sleeper.pid)
    path = tmp_path / "processes.json"
    path.write_text(json.dumps([{**each, **change} for each in json.loads(path.read_text())]))
    assert down.main(["--data", str(tmp_path)]) == 0
    assert sleeper.poll() is None
    assert capsys.readouterr().out == f"no rewardloop runs on {tmp_path}\n"


def test_down_ends_processes_in_the_reverse_order_and_kills_what_does_not_end(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    stubborn = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    try:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        file = ProcessFile(tmp_path)
        file.record("redis-server", sleeper.pid)
        file.record("serve", stubborn.pid)
        assert down.main(["--data", str(tmp_path), "--grace-s", "0.5"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"killed serve (pid {stubborn.pid})")
        assert lines[1:] == [f"ended redis-server (pid {sleeper.pid})"]
        assert not (tmp_path / "processes.json").exists()
    finally:
        stubborn.kill()
        stubborn.wait()


def test_down_lets_a_supervisor_that_runs_end_its_processes(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
import os, signal, time
def end(*_):
    os.kill({sleeper.pid}, 9)
    while open("/proc/{sleeper.pid}/stat").read().rpartition(") ")[2][0] != "Z":
        time.sleep(0.01)
    os._exit(0)
signal.signal(signal.SIGTERM, end)"""
    supervisor = subprocess.Popen(
        [sys.executable, "-S", "-c", f"{code}\nprint(flush=True)\ntime.sleep(600)"], stdout=subprocess.PIPE
    )
    try:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        file = ProcessFile(tmp_path)
        file.record(SUPERVISOR, supervisor.pid)
        file.record("serve", sleeper.pid)
        assert down.main(["--data", str(tmp_path)]) == 0
        assert sleeper.wait(10) == -9
        assert capsys.readouterr().out == f"ended supervisor (pid {supervisor.pid})\n"
    finally:
        supervisor.kill()
        supervisor.wait()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'[{"name": "serve", "pid": -1, "started": 1.0, "executable": "/x"}]',
        b'[{"name": "serve", "pid": "1", "started": 1.0, "executable": "/x"}]',
        b'[{"name": "serve", "pid": 1e400, "started": 1.0, "executable": "/x"}]',
        b'[{"name": "serve", "pid": 99999999999999999999, "started": 1.0, "executable": "/x"}]',
        b'[{"name": "serve", "pid": 1, "started": "1", "executable": "/x"}]',
        b'[{"name": "serve", "pid": 1}]',
    ],
)
async def test_a_damaged_file_of_processes_is_one_line_that_says_how_to_look(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "processes.json").write_bytes(content)
    assert down.main(["--data", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rewardloop down: {tmp_path / 'processes.json'} ")
    assert "pgrep" in line
    deployment = Deployment(_plan(tmp_path), on_phase=lambda phase: None)
    with pytest.raises(DeploymentError, match="pgrep") as raised:
        await deployment.start()
    await deployment.stop()
    assert len(str(raised.value).splitlines()) == 1
    assert (tmp_path / "processes.json").read_bytes() == content


async def test_a_demo_keeps_data_whose_processes_it_cannot_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "processes.json").touch()
    assert await run(DemoSettings(out=tmp_path)) == 1
    assert "pgrep" in capsys.readouterr().out
    assert (tmp_path / "data" / "processes.json").exists()


@pytest.mark.parametrize("flag", ["export-args", "serve-args", "policy-args", "train-args"])
def test_flags_with_an_open_quote_are_one_line(tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        up.main(["--data", str(tmp_path / "data"), f"--{flag}=--token 'abc"])
    assert raised.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rewardloop up: {flag.replace('-', '_')}: No closing quotation")
    assert "abc" not in line
    assert not (tmp_path / "data").exists()


async def test_lock_files_are_no_programs(tmp_path: Path) -> None:
    deployment = Deployment(_plan(tmp_path), on_phase=lambda phase: None)
    try:
        deployment._take_data()
        await deployment._start_redis()
        for lock in (tmp_path / "up.lock", tmp_path / "redis" / "redis.lock"):
            assert lock.stat().st_mode & 0o111 == 0
    finally:
        await deployment.stop()


@pytest.mark.parametrize(
    ("environment", "exempt"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "example.com"}, "example.com,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "no_grpc_proxy": "b"}, "b,localhost,127.0.0.1,::1"),
    ],
)
def test_loopback_is_exempt_from_proxies_beside_what_the_user_exempts(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], exempt: str
) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_grpc_proxy", environment.get("no_grpc_proxy", ""))
    exempt_loopback()
    assert os.environ.get("no_grpc_proxy") == exempt  # noqa: SIM112 - gRPC reads it in small letters


async def test_a_demo_does_not_delete_the_data_of_one_that_runs(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    ProcessFile(data).record("serve", sleeper.pid)
    assert await run(DemoSettings(out=tmp_path)) == 1
    assert f"'rewardloop down --data {data}'" in capsys.readouterr().out
    assert ProcessFile(data).running()
