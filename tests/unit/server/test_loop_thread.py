"""Work for an event loop in another thread ends with that thread, whenever it came."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from rewardloop_server.pooling.loop_thread import LoopThread


def test_work_that_comes_while_the_thread_is_being_ended_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_ending, may_end = threading.Event(), threading.Event()

    async def at_end() -> None:
        is_ending.set()
        while not may_end.is_set():  # noqa: ASYNC110 - the event is another thread's
            await asyncio.sleep(0.01)

    subject = LoopThread("subject", at_end)
    subject.submit(asyncio.sleep(0)).result(5)
    submit = asyncio.run_coroutine_threadsafe

    def submit_late(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> Future[None]:
        threading.Thread(target=subject.close).start()
        is_ending.wait(0.5)  # if the thread can end in between
        return submit(work, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_late)
    future = subject.submit(asyncio.sleep(60))
    may_end.set()
    with pytest.raises(CancelledError):
        future.result(5)


def test_work_after_the_end_is_refused() -> None:
    async def at_end() -> None:
        pass

    subject = LoopThread("subject", at_end)
    subject.close()
    with pytest.raises(RuntimeError, match="the thread subject has ended"):
        subject.submit(asyncio.sleep(0))
