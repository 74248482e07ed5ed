"""A test's process is ended with all that it started, or a wrapper's program would outlive the tests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
from support.processes import ServeProcess
from support.trainers import Archiver

# Starts a program as a child and waits for it, as faketime does.
_WRAPPER = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]


class _Wrapped(ServeProcess):
    def argv(self) -> list[str]:
        return [*_WRAPPER, "sleep", "60"]


def child_of(pid: int) -> psutil.Process:
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return children[0]


def has_ended(process: psutil.Process) -> bool:
    """Whether it ends soon; one that was killed is a zombie until its new parent has collected it."""
    deadline = time.monotonic() + 20
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_killed_server_takes_the_child_of_its_wrapper_along(tmp_path: Path) -> None:
    server = _Wrapped(tmp_path / "models", "redis://127.0.0.1:1", tmp_path / "serve.log")
    server.start()
    assert server.process is not None
    child = child_of(server.process.pid)
    server.kill()
    assert has_ended(child)


def test_all_trainers_are_killed_the_first_one_too(tmp_path: Path) -> None:
    trainer = Archiver(tmp_path, "redis://127.0.0.1:1")
    trainer.argv = [*_WRAPPER, "sleep", "60"]
    children = [child_of(trainer.start().pid) for _ in range(2)]
    trainer.kill_all()
    assert all(has_ended(child) for child in children)
