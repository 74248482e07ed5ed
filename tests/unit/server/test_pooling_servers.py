"""A server of a version that fails, hangs or changes delays no other one, and proves anew before it is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.pooling_file import PoolingFile, Probe
from rewardloop_server.pooling import servers as module
from rewardloop_server.pooling.dialects import Pooled
from rewardloop_server.pooling.endpoint import PoolingFailed, PoolingUnreachable
from rewardloop_server.pooling.servers import VersionServers
from rewardloop_server.scoring.engine import EngineAway

PROOF = [[1, 2]]
FILE = PoolingFile("judge", None, 0.001, (Probe((("user", "a"),), "b", (1, 2), (3.0,)),))


class Endpoint:
    """A server in memory, whose logit is the sum of the ids, times ``factor``.

    Attributes:
        fails: Raises for rows that it does not answer.
        is_open: An answer waits for it.
        asked: How many calls have come.
        weights: What it calls its weights.
        hang_up: Closes the connection on which nothing is sent.
    """

    def __init__(self, address: str = "server") -> None:
        self.address = address
        self.factor = 1.0
        self.fails: Callable[[Sequence[Sequence[int]]], object] = lambda rows: None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.asked = 0
        self.weights = ""
        self.hang_up: Callable[[], None] = lambda: None

    async def served(self) -> dict[str, int | None]:
        return {"judge": None}

    async def outputs(self, name: str, rows: Sequence[Sequence[int]]) -> Pooled:
        self.asked += 1
        await self.is_open.wait()
        self.fails(rows)
        return Pooled(np.array([[self.factor * sum(row)] for row in rows]), self.weights)

    async def watched(self, on_closed: Callable[[], None]) -> Idle:
        idle = Idle()

        def hang_up() -> None:
            idle.is_open = False
            on_closed()

        self.hang_up = hang_up
        return idle


class Idle:
    is_open, age_s = True, 5.0

    def close(self) -> None:
        self.is_open = False


def refuses_all(rows: Sequence[Sequence[int]]) -> None:
    raise PoolingUnreachable("connection refused")


def fails_but_for_the_proof(rows: Sequence[Sequence[int]]) -> None:
    if rows != PROOF:
        raise PoolingFailed("status 500")


def version(*endpoints: Any) -> VersionServers:
    return VersionServers(Manifest(model="reward", text_format={}, max_length=64), FILE, PROOF, endpoints)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)


async def test_a_server_that_hangs_delays_no_other_one() -> None:
    hanging, right = Endpoint("hanging"), Endpoint("right")
    hanging.is_open.clear()
    servers = version(hanging, right)
    async with asyncio.timeout(5):
        await servers.prove()
        assert (await servers.outputs([[4]])).tolist() == [[4.0]]


async def test_a_server_that_left_a_run_unanswered_is_asked_no_more() -> None:
    hanging, right = Endpoint("hanging"), Endpoint("right")
    servers = version(hanging, right)
    await servers.prove()
    hanging.is_open.clear()
    before = hanging.asked
    run = asyncio.create_task(servers.outputs([[4]]))
    await until(lambda: hanging.asked > before)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    async with asyncio.timeout(5):
        assert (await servers.outputs([[5]])).tolist() == [[5.0]]


async def test_a_server_that_was_away_when_it_should_prove_again_proves_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROVE_EVERY_S", 0.01)
    monkeypatch.setattr(module, "_LASTS_S", 0.0)
    server = Endpoint()
    servers = version(server)
    await servers.prove()
    server.fails = refuses_all
    async with kept(servers):
        await until(lambda: not servers.has_proven)
        server.fails, server.factor = lambda rows: None, 2.0
        before = server.asked
        await until(lambda: server.asked > before + 1)
        with pytest.raises(EngineAway, match="does not serve it as 'judge'"):
            await servers.outputs([[4]])


async def test_a_run_that_no_server_answers_fails_with_the_reason() -> None:
    server = Endpoint()
    servers = version(server)
    await servers.prove()
    server.fails = refuses_all
    with pytest.raises(EngineAway, match="connection refused"):
        await servers.outputs([[4]])
    assert not servers.has_proven


@pytest.mark.parametrize("count", [1, 2, 8])
async def test_rows_fail_by_themselves_on_servers_that_prove_themselves_afterwards(count: int) -> None:
    endpoints = [Endpoint(f"server {i}") for i in range(count)]
    servers = version(*endpoints)
    await servers.prove()
    await until(lambda: all(each.asked for each in endpoints))
    before = sum(each.asked for each in endpoints)
    for each in endpoints:
        each.fails = fails_but_for_the_proof
    with pytest.raises(PoolingFailed, match="status 500"):
        await servers.outputs([[4]])
    assert servers.has_proven
    assert sum(each.asked for each in endpoints) - before == 4, "two tries and a proof after each"


async def test_rows_on_which_one_server_fails_are_answered_by_another_one() -> None:
    failing, right = Endpoint("failing"), Endpoint("right")
    servers = version(failing, right)
    await servers.prove()
    await until(lambda: failing.asked and right.asked)
    failing.fails = fails_but_for_the_proof
    for _ in range(4):
        assert (await servers.outputs([[4]])).tolist() == [[4.0]]


async def test_rows_that_end_servers_are_sent_to_few_of_them() -> None:
    endpoints = [Endpoint(f"server {i}") for i in range(8)]
    servers = version(*endpoints)
    await servers.prove()
    await until(lambda: all(each.asked for each in endpoints))

    def ends_at(endpoint: Endpoint) -> Callable[[Sequence[Sequence[int]]], None]:
        def fails(rows: Sequence[Sequence[int]]) -> None:
            endpoint.fails = refuses_all
            raise PoolingFailed("the connection breaks")

        return fails

    for each in endpoints:
        each.fails = ends_at(each)
    with pytest.raises(EngineAway, match="the connection breaks"):
        await servers.outputs([[4]])
    assert sum(each.fails is refuses_all for each in endpoints) == 3
    assert servers.has_proven


async def test_a_server_that_is_busy_whenever_it_is_asked_is_away_for_the_run_alone() -> None:
    def is_busy(rows: Sequence[Sequence[int]]) -> None:
        if rows != PROOF:
            raise PoolingUnreachable("429: too many requests")

    server = Endpoint()
    servers = version(server)
    await servers.prove()
    server.fails = is_busy
    before = server.asked
    with pytest.raises(EngineAway, match="429"):
        await servers.outputs([[4]])
    assert servers.has_proven
    assert server.asked - before <= 4


async def test_a_server_that_closed_a_connection_proves_again_before_it_is_asked() -> None:
    server = Endpoint()
    servers = version(server)
    await servers.prove()
    async with kept(servers):
        await until(lambda: server.asked == 2)  # proven again, and watched by now
        await asyncio.sleep(0)
        assert (await servers.outputs([[4]])).tolist() == [[4.0]]
        server.factor = 2.0
        server.hang_up()
        with pytest.raises(EngineAway, match="does not serve it as 'judge'"):
            await servers.outputs([[4]])


async def test_a_server_that_names_other_weights_proves_again_before_its_answer_is_taken() -> None:
    server = Endpoint()
    server.weights = "first"
    servers = version(server)
    await servers.prove()
    server.weights = "the same by another name"
    assert (await servers.outputs([[4]])).tolist() == [[4.0]]
    server.weights, server.factor = "other", 2.0
    with pytest.raises(EngineAway, match="does not serve it as 'judge'"):
        await servers.outputs([[4]])


@asynccontextmanager
async def kept(servers: VersionServers) -> AsyncIterator[None]:
    keeping = asyncio.create_task(servers.keep_proven())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
