"""Writes of concurrent callers go together, in order, and each caller hears of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from rewardloop_server.feedback import group_commit
from rewardloop_server.feedback.group_commit import GroupCommit


@dataclass(frozen=True)
class Item:
    name: str
    size: int = 1


@dataclass
class Disk:
    """Keeps what is written; a write ends when it is let."""

    groups: list[list[str]] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None

    async def write(self, items: Sequence[Item]) -> list[str]:
        self.groups.append([item.name for item in items])
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure
        return [f"written {item.name}" for item in items]


def commit(disk: Disk, most_entries: int = 100, most_bytes: int = 1000) -> GroupCommit[Item, str]:
    return GroupCommit(disk.write, most_entries=most_entries, most_bytes=most_bytes)


async def started(*calls: asyncio.Task[list[str]]) -> None:
    """Let the calls run until they wait."""
    for _ in range(50):
        await asyncio.sleep(0)


def call(group: GroupCommit[Item, str], *names: str, size: int = 1) -> asyncio.Task[list[str]]:
    return asyncio.create_task(group.add([Item(name, size) for name in names]))


async def test_first_write_starts_at_once_and_what_comes_meanwhile_goes_together() -> None:
    disk = Disk()
    group = commit(disk)
    calls = [call(group, "a")]
    await started()
    assert disk.groups == [["a"]]
    calls += [call(group, "b"), call(group, "c", "d"), call(group, "e")]
    await started()
    assert disk.groups == [["a"]]
    disk.may_end.set()
    assert await asyncio.gather(*calls) == [["written a"], ["written b"], ["written c", "written d"], ["written e"]]
    assert disk.groups == [["a"], ["b", "c", "d", "e"]]


@pytest.mark.parametrize(
    ("bounds", "groups"),
    [
        ({"most_entries": 2}, [["a", "b"], ["c", "d"], ["e"]]),
        ({"most_bytes": 35}, [["a", "b", "c"], ["d", "e"]]),
        ({"most_bytes": 5}, [["a"], ["b"], ["c"], ["d"], ["e"]]),
    ],
    ids=["entries", "bytes", "larger than a group"],
)
async def test_groups_are_bounded_and_in_order(bounds: dict[str, int], groups: list[list[str]]) -> None:
    disk = Disk()
    disk.may_end.set()
    group = commit(disk, **bounds)
    calls = [call(group, "a", "b", "c", size=10), call(group, "d", "e", size=10)]
    assert await asyncio.gather(*calls) == [["written a", "written b", "written c"], ["written d", "written e"]]
    assert disk.groups == groups


async def test_failure_is_that_of_all_who_wait_and_the_next_write_is_new() -> None:
    disk = Disk(failure=ConnectionError("away"))
    group = commit(disk, most_entries=1)
    calls = [call(group, "a", "b"), call(group, "c")]
    await started()
    disk.may_end.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["away", "away"]
    disk.failure = None
    assert await group.add([Item("d")]) == ["written d"]
    assert disk.groups == [["a"], ["d"]]


async def test_cancelled_caller_takes_nobody_along() -> None:
    disk = Disk()
    group = commit(disk)
    under_way, waiting, other = call(group, "a"), call(group, "b"), call(group, "c")
    await started()
    late = call(group, "d")
    await started()
    under_way.cancel()
    late.cancel()
    await started()
    disk.may_end.set()
    assert await asyncio.gather(waiting, other) == [["written b"], ["written c"]]
    assert disk.groups == [["a", "b", "c"]]
    assert await group.add([Item("e")]) == ["written e"]


async def test_nothing_is_an_answer_of_nothing() -> None:
    disk = Disk()
    assert await commit(disk).add([]) == []
    assert disk.groups == []


async def come_together(group: GroupCommit[Item, str]) -> list[asyncio.Task[list[str]]]:
    """One call that is being written, and four that came meanwhile."""
    calls = [call(group, "a")]
    await started()
    calls += [call(group, name) for name in "bcde"]
    await started()
    return calls


async def test_where_callers_come_together_a_write_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_MOMENT_S", 60.0)
    disk = Disk()
    group = commit(disk)
    calls = await come_together(group)
    disk.may_end.set()
    await started()
    assert disk.groups == [["a"]]  # it waits
    more = [str(i) for i in range(group_commit._ENOUGH - 4)]
    calls.append(call(group, *more))
    async with asyncio.timeout(10):
        await asyncio.gather(*calls)
    assert disk.groups == [["a"], [*"bcde", *more]]


async def test_wait_for_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_MOMENT_S", 0.05)
    disk = Disk()
    group = commit(disk)
    calls = await come_together(group)
    disk.may_end.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*calls)
    assert disk.groups == [["a"], [*"bcde"]]


async def test_caller_who_is_alone_never_waits_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_MOMENT_S", 60.0)
    disk = Disk()
    disk.may_end.set()
    group = commit(disk)
    async with asyncio.timeout(10):
        for i in range(20):
            await group.add([Item(str(i))])
    assert disk.groups == [[str(i)] for i in range(20)]
