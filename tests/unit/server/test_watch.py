"""What the watch does about work and event loops that stand still, without a process to end."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from rewardloop.formats.text import Encoded
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_server.calls.errors import InternalError
from rewardloop_server.guard import watch as watching
from rewardloop_server.guard.watch import LostThread, Watch, Work
from rewardloop_server.scoring import tokenize
from rewardloop_server.scoring.tokenize import TokenizePool


async def test_work_that_ends_in_time_is_left_alone() -> None:
    watch, stopped = Watch(0.2), threading.Event()
    task = asyncio.create_task(watch.run())
    for _ in range(10):
        with watch.over(Work("run", "1", 0.5, stopped.set)):
            await asyncio.sleep(0.1)
    assert not stopped.is_set()
    assert not watch.has_work
    task.cancel()


async def test_work_is_told_to_stop_once_and_lost_after_its_grace() -> None:
    watch = Watch(0.5)
    told: list[str] = []
    task = asyncio.create_task(watch.run())
    work = Work(
        "run", "1", 0.3, lambda: told.append("stop"), lambda: told.append("overrun"), lambda: told.append("lost")
    )
    watch.begin(work)
    with pytest.raises(LostThread, match="run of version 1"):
        await asyncio.wait_for(task, 10)
    assert told == ["overrun", "stop", "lost"]
    assert watch.has_work


async def test_event_loop_that_stands_still_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watching, "_LOOP_LIMIT_S", 0.5)
    monkeypatch.setattr(watching, "end_now", ended.append)
    task = asyncio.create_task(Watch().run())
    await asyncio.sleep(0.05)
    time.sleep(1.5)  # noqa: ASYNC251 - as native code would
    assert ended
    task.cancel()


async def test_text_that_is_never_tokenized_fails_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def groups(self, groups: Any) -> list[list[Encoded]]:
            time.sleep(3)
            return [[] for _ in groups]

    monkeypatch.setattr(tokenize, "_LIMIT_S", 0.3)
    watch = Watch(0.3)
    task = asyncio.create_task(watch.run())
    pool = TokenizePool(1, watch)
    request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="x" * 1000), responses=["y"])
    encoder: Any = Endless()
    with pytest.raises(InternalError):
        await pool.encode(encoder, request, "a")
    with pytest.raises(LostThread, match="tokenizing"):
        await asyncio.wait_for(task, 10)
