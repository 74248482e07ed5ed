"""A process of the service that says nothing any more is killed, but not for a pause in which nobody could listen."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rewardloop_server.fronts import supervisor
from rewardloop_server.fronts.order import Order
from rewardloop_server.fronts.supervisor import Child
from rewardloop_server.settings import ServeSettings

SILENT_S, WAIT_S = 0.6, 0.2
SPEAKS = "while :; do sleep 0.05; echo; done"
IS_SILENT = "exec sleep 600"


@asynccontextmanager
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, course: str) -> AsyncIterator[Path]:
    """Keep a process that is ready and then takes this course. Yields a file with a line for each that was started."""
    started, program = tmp_path / "started", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $$ >> {started}\necho ready\n{course}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(supervisor, "_SILENT_S", SILENT_S)
    monkeypatch.setattr(supervisor, "_WAIT_S", WAIT_S)
    child = Child(Order("front-0", 0, tmp_path, ServeSettings()))
    keeping = asyncio.create_task(child.keep())
    try:
        async with asyncio.timeout(30):
            await child.is_ready.wait()
        yield started
    finally:
        await child.end(5.0)
        await keeping


async def test_a_process_that_is_silent_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch, IS_SILENT) as started, asyncio.timeout(30):
        while len(started.read_text().split()) < 2:  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.05)


async def test_no_process_is_killed_after_a_pause_of_the_one_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch, SPEAKS) as started:
        await asyncio.sleep(2 * WAIT_S)
        time.sleep(2 * SILENT_S)  # noqa: ASYNC251  # the event loop is to stand still, as under SIGSTOP
        await asyncio.sleep(2 * SILENT_S)
        assert len(started.read_text().split()) == 1
