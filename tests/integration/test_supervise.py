"""The supervisor: who dies is started again, ever more slowly, and everything is stopped in order."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rewardloop_local import supervise
from rewardloop_local.supervise import Process, Supervisor


async def until(holds: object, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_process_that_dies_at_once_is_started_again_with_growing_pauses(tmp_path: Path) -> None:
    code = "import time; print(time.monotonic(), flush=True); raise SystemExit(3)"
    process = Process("dying", [sys.executable, "-S", "-c", code], tmp_path / "log")
    supervisor = Supervisor()
    supervisor.add(process)
    await until(lambda: process.restarts >= 3)
    await until(lambda: len(process.log_path.read_text().split()) >= 4)
    await supervisor.stop()
    started = [float(word) for word in process.log_path.read_text().split()[:4]]
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    assert pauses[2] >= 2.0


async def test_killed_process_is_started_again_and_those_beside_it_run_on(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    killed, other = (Process(name, sleeper, tmp_path / name) for name in ("killed", "other"))
    supervisor = Supervisor()
    for process in (killed, other):
        supervisor.add(process)
    first, beside = killed.pid, other.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: killed.restarts == 1 and killed.is_running)
    assert killed.pid != first
    assert (other.pid, other.restarts) == (beside, 0)
    await supervisor.stop()
    assert not killed.is_running
    assert not other.is_running


async def test_process_that_cannot_be_started_now_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    process = Process("late", [str(program)], tmp_path / "log")
    supervisor = Supervisor()
    supervisor.add(process)
    program.rename(tmp_path / "away")
    await until(lambda: process.restarts >= 2)
    (tmp_path / "away").rename(program)
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    await until(lambda: process.is_running and process.restarts >= 3)
    await supervisor.stop()


async def test_process_whose_start_cannot_be_recorded_runs_on_and_is_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full, recorded = True, list[int]()

    def fail_on_a_full_disk() -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def record(pid: int) -> None:
        fail_on_a_full_disk()
        recorded.append(pid)

    class FullLog:
        def warning(self, event: str, **fields: object) -> None:
            fail_on_a_full_disk()

        error = warning

    monkeypatch.setattr(supervise, "log", FullLog())
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    process = Process("sleeper", sleeper, tmp_path / "log", on_start=record)
    supervisor = Supervisor()
    supervisor.add(process)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: process.restarts == 1 and process.is_running)
    is_full = False
    await until(lambda: recorded)
    assert recorded == [process.pid]
    await supervisor.stop()
    assert not process.is_running
