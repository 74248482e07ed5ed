"""Large calls share a bounded number of bytes."""

from __future__ import annotations

import asyncio

import pytest

from rewardloop_server.feedback.room import Room


async def enter(room: Room, size: int, inside: list[int], leave: asyncio.Event) -> None:
    async with room.taken(size):
        inside.append(size)
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_wait_in_their_order_until_there_is_room() -> None:
    room, inside = Room(10), list[int]()
    leave = [asyncio.Event() for _ in range(4)]
    calls = [asyncio.create_task(enter(room, size, inside, e)) for size, e in zip((6, 5, 1, 99), leave, strict=True)]
    await settle()
    assert inside == [6]  # the third would fit, and does not overtake the second
    leave[0].set()
    await settle()
    assert inside == [6, 5, 1]
    leave[1].set()
    leave[2].set()
    await settle()
    assert inside == [6, 5, 1, 99]  # one above the whole room goes alone
    leave[3].set()
    await asyncio.gather(*calls)


async def test_a_call_that_goes_away_leaves_its_place_and_its_room() -> None:
    room, inside = Room(10), list[int]()
    first, never = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(enter(room, 10, inside, first))
    waiting = asyncio.create_task(enter(room, 7, inside, never))
    behind = asyncio.create_task(enter(room, 3, inside, first))
    await settle()
    waiting.cancel()
    await settle()
    first.set()
    await asyncio.gather(holding, behind)
    assert inside == [10, 3]
    inside.clear()
    again = asyncio.create_task(enter(room, 10, inside, never))
    await settle()
    assert inside == [10]
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert room._free == 10
