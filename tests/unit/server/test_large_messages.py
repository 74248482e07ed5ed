"""Large messages are worked on one at a time, in rotation between peers, with time for others after each."""

from __future__ import annotations

import asyncio
import time

import pytest

from rewardloop_server.calls.message_size import LARGE_BYTES
from rewardloop_server.doors.large_messages import LargeMessages


def work(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def test_small_messages_wait_for_nothing() -> None:
    large = LargeMessages()
    async with large.turn("a", LARGE_BYTES):
        async with asyncio.timeout(1):
            async with large.turn("a", LARGE_BYTES - 1):
                pass


async def test_one_at_a_time_and_peers_in_rotation() -> None:
    large, order = LargeMessages(), []

    async def call(peer: str) -> None:
        async with large.turn(peer, LARGE_BYTES):
            order.append(peer)

    async with asyncio.TaskGroup() as calls:
        for peer in ("many", "many", "many", "many", "one", "other"):
            calls.create_task(call(peer))
    assert order == ["many", "many", "one", "other", "many", "many"]


async def test_after_each_the_loop_is_left_to_others_for_as_long_as_it_took() -> None:
    large, starts = LargeMessages(), []

    async def call(its_task_s: float) -> None:
        async with large.turn("a", LARGE_BYTES):
            starts.append(time.perf_counter())
            work(0.01)
        asyncio.get_running_loop().call_soon(work, its_task_s)

    async with asyncio.TaskGroup() as calls:
        for its_task_s in (0.03, 0.0, 0.0):
            calls.create_task(call(its_task_s))
    assert starts[1] - starts[0] >= 0.079  # what the first call starts belongs to its turn
    assert starts[2] - starts[1] >= 0.019


async def test_a_call_that_goes_away_keeps_no_turn() -> None:
    large = LargeMessages()
    reached = asyncio.Event()

    async def call() -> None:
        async with large.turn("a", LARGE_BYTES):
            reached.set()

    async with large.turn("a", LARGE_BYTES):
        gone = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
    assert not reached.is_set()
    async with asyncio.timeout(5):
        await call()


async def test_one_that_goes_away_when_its_turn_has_come_hands_it_on() -> None:
    large = LargeMessages()

    async def call() -> None:
        async with large.turn("a", LARGE_BYTES):
            pass

    await large._wait("a")
    first, second = asyncio.create_task(call()), asyncio.create_task(call())
    await asyncio.sleep(0)
    large._next()
    first.cancel()
    async with asyncio.timeout(5):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first
