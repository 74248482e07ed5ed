"""A server of a version that fails, hangs or changes delays no other one, and proves anew before it is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rewardloop.formats.store import Manifest
from rewardloop.formats.storing.pooling_file import PoolingFile, Probe
from rewardloop_server.pooling import servers as module
from rewardloop_server.pooling.dialects import Logits
from rewardloop_server.pooling.endpoint import PoolingUnreachable
from rewardloop_server.pooling.servers import VersionServers
from rewardloop_server.scoring.engine import EngineAway

PROOF = [[1, 2]]
FILE = PoolingFile("judge", None, 0.001, (Probe((("user", "a"),), "b", (1, 2), (3.0,)),))


class Endpoint:
    """A server in memory, whose logit is the sum of the ids, times ``factor``.

    Attributes:
        fails: Which rows it does not answer, with what it says.
        is_open: An answer waits for it.
        asked: How many calls have come.
    """

    def __init__(self, address: str = "server") -> None:
        self.address = address
        self.factor = 1.0
        self.fails: Callable[[Sequence[Sequence[int]]], str] = lambda rows: ""
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.asked = 0

    async def served(self) -> dict[str, int | None]:
        return {"judge": None}

    async def outputs(self, name: str, rows: Sequence[Sequence[int]]) -> Logits:
        self.asked += 1
        await self.is_open.wait()
        if why := self.fails(rows):
            raise PoolingUnreachable(why)
        return np.array([[self.factor * sum(row)] for row in rows])


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
    server.fails = lambda rows: "connection refused"
    before = server.asked
    keeping = asyncio.create_task(servers.keep_proven())
    await until(lambda: server.asked > before)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    server.fails, server.factor = lambda rows: "", 2.0
    with pytest.raises(EngineAway, match="does not serve it as 'judge'"):
        await servers.outputs([[4]])


async def test_a_run_that_no_server_answers_fails_with_the_reason() -> None:
    server = Endpoint()
    server.fails = lambda rows: "" if rows == PROOF else "server: /pooling: 500: no such row"
    servers = version(server)
    await servers.prove()
    with pytest.raises(EngineAway, match="500: no such row"):
        await servers.outputs([[4]])
