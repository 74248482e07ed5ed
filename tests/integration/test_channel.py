"""Fronts and an engine over a real Unix socket, all in this process: what crosses, and what is left when one goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import (
    DeadlinePassed,
    EngineStuck,
    NoModel,
    QueueFull,
    RewardloopError,
    UnknownVersion,
)
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.channel.desk import Desk
from rewardloop_server.channel.holdings import Holdings
from rewardloop_server.channel.link import EngineLink
from rewardloop_server.channel.remote_batcher import RemoteBatcher
from rewardloop_server.channel.remote_versions import RemoteModel, RemoteVersions
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.versions.host import fetch_and_load


def row(*ids: int) -> Encoded:
    return Encoded(list(ids), None, truncated=False)


@dataclass
class Front:
    batcher: RemoteBatcher
    versions: RemoteVersions
    task: asyncio.Task[None]

    async def load(self, version: str) -> RemoteModel:
        return await asyncio.to_thread(fetch_and_load, self.versions, self.versions.load, "reward", version)

    async def leave(self) -> None:
        """As a front that is killed: its connection ends."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Engine:
    store: ModelStore
    path: Path
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    server: asyncio.Server | None = None
    desk: Desk | None = None

    async def open(self, *, token_budget: int = 64, runs: bool = True) -> None:
        pool = SessionPool(self.store, Device("cpu", 1, spin=False), self.metrics)
        batcher = Batcher(
            token_budget=token_budget,
            lanes={lane: LaneLimits(max_tokens=100) for lane in QUEUE_LANES},
            trainer_max_wait_s=1.0,
            metrics=self.metrics,
        )
        self.pool = pool
        self.desk = Desk(batcher, Holdings(self.store, pool.load, ThreadPoolExecutor(1)))
        self.path.unlink(missing_ok=True)
        self.server = await asyncio.get_running_loop().create_unix_server(self.desk.connection, str(self.path))
        self.tasks = [asyncio.create_task(self.desk.report())]
        if runs:
            self.run()

    def run(self) -> None:
        assert self.desk is not None
        self.tasks.append(asyncio.create_task(self.desk.batcher.run()))

    async def close(self) -> None:
        """As an engine's process that is killed: all connections end."""
        assert self.server is not None
        assert self.desk is not None
        self.server.close()
        for connection in tuple(self.desk.connections):
            connection.hang_up()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @asynccontextmanager
    async def front(self) -> AsyncIterator[Front]:
        link = EngineLink(self.path)
        versions = RemoteVersions(self.store, link, asyncio.get_running_loop())
        batcher = RemoteBatcher(link, versions, ServerMetrics())
        front = Front(batcher, versions, asyncio.create_task(batcher.run()))
        try:
            yield front
        finally:
            await front.leave()

    def waiting(self, lane: str = "production") -> float:
        """Tokens that wait in the engine's queue."""
        return self.metrics.registry.get_sample_value("rewardloop_queue_tokens", {"lane": lane}) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a gauge cannot be awaited
            await asyncio.sleep(0.005)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    publish_sum_version(store, factor=-3.0)
    engine = Engine(store, tmp_path / "engine.socket")
    yield engine
    await engine.close()


async def test_groups_of_several_fronts_get_their_own_logits(engine: Engine) -> None:
    await engine.open()
    async with engine.front() as one, engine.front() as other:
        versions = [(await one.load("1"), 1.0), (await other.load("1"), 1.0), (await other.load("2"), -3.0)]
        assert engine.pool.sessions == 2, "a version is loaded once, whichever fronts hold it"
        fronts = [one, other, other]

        async def score(i: int) -> None:
            model, factor = versions[i % 3]
            ids = [range(1, 2 + i % 9), range(1, 3 + i % 7)]
            async with asyncio.timeout(30):
                scored = await fronts[i % 3].batcher.score(model, [row(*each) for each in ids], "production", None, "a")
            sums = np.array([[sum(each) * factor, 2 * sum(each) * factor] for each in ids], dtype=np.float32)
            assert scored.logits.tolist() == sums.tolist()

        await asyncio.gather(*(score(i) for i in range(120)))


async def test_room_is_shared_by_the_fronts_and_refusals_say_when_to_come_again(engine: Engine) -> None:
    await engine.open(runs=False)
    async with engine.front() as one, engine.front() as other:
        await until(lambda: one.versions.is_served and other.versions.is_served)
        with one.batcher.reserved("production", 70, None, "a") as granted:
            await granted
            with other.batcher.reserved("production", 10, None, "a") as granted, pytest.raises(QueueFull) as refusal:
                await granted
            assert (refusal.value.retry_after_ms or 0) >= 20
            with other.batcher.reserved("production", 15, None, "b") as granted:
                await granted
            with other.batcher.reserved("production", 10, None, "a", is_bounded=False) as granted:
                await granted
        await asyncio.sleep(0.05)
        with other.batcher.reserved("production", 70, None, "a") as granted:
            await granted


async def test_deadline_that_passes_in_the_queue_is_told(engine: Engine) -> None:
    await engine.open(runs=False)
    async with engine.front() as front:
        model = await front.load("1")
        loop = asyncio.get_running_loop()
        late = asyncio.create_task(front.batcher.score(model, [row(1, 2)], "production", loop.time() + 0.05, "a"))
        await asyncio.sleep(0.1)
        engine.run()
        with pytest.raises(DeadlinePassed):
            await late


async def test_cancelled_call_leaves_nothing_in_the_queue(engine: Engine) -> None:
    await engine.open(runs=False)
    async with engine.front() as front:
        model = await front.load("1")
        call = asyncio.create_task(front.batcher.score(model, [row(1, 2, 3)], "trainer", None, "a"))
        await until(lambda: engine.waiting("trainer") == 3)
        call.cancel()
        await until(lambda: engine.waiting("trainer") == 0)


async def test_front_that_dies_leaves_neither_rows_nor_room(engine: Engine) -> None:
    await engine.open(runs=False)
    async with engine.front() as one, engine.front() as other:
        model = await one.load("1")
        call = asyncio.create_task(one.batcher.score(model, [row(*range(1, 41))], "production", None, "a"))
        await until(lambda: engine.waiting() == 40)
        with one.batcher.reserved("production", 30, None, "b") as granted:
            await granted
            await one.leave()
        with pytest.raises(NoModel):
            await call
        await until(lambda: engine.waiting() == 0)
        with other.batcher.reserved("production", 75, None, "c") as granted:
            await granted


async def test_versions_are_freed_with_the_last_front_that_holds_them(engine: Engine) -> None:
    await engine.open()
    async with engine.front() as one, engine.front() as other:
        models = [await one.load("1"), await other.load("1")]
        models[0].close()
        await asyncio.sleep(0.1)
        assert engine.pool.sessions == 1
        await other.batcher.score(models[1], [row(1)], "production", None)
        models[1].close()
        await until(lambda: engine.pool.sessions == 0)


async def test_engine_that_dies_fails_what_is_in_flight_and_its_successor_holds_the_versions_again(
    engine: Engine,
) -> None:
    await engine.open(runs=False)
    async with engine.front() as front:
        model = await front.load("2")
        serving: Any = SimpleNamespace(active=model.manifest)
        front.versions.take_hosts({"reward": serving})
        assert not front.batcher.is_stuck
        call = asyncio.create_task(front.batcher.score(model, [row(1, 2, 3)], "production", None, "a"))
        await until(lambda: engine.waiting() == 3)
        await engine.close()
        with pytest.raises(NoModel):
            await call
        assert front.batcher.is_stuck
        with pytest.raises(NoModel):
            await front.batcher.score(model, [row(1)], "production", None)
        await engine.open()
        await until(lambda: not front.batcher.is_stuck)
        scored = await front.batcher.score(model, [row(1, 2, 3)], "production", None)
        assert scored.logits.tolist() == [[-18.0, -36.0]]


async def test_front_learns_whose_server_is_away_before_it_is_refused_for_that(engine: Engine) -> None:
    await engine.open()
    assert engine.desk is not None
    async with engine.front() as front:
        away, there = await front.load("1"), await front.load("2")
        held: Any = engine.desk.holdings.model(away.handle)
        held._runner.is_away = True
        with pytest.raises(EngineStuck):
            await front.batcher.score(away, [row(1)], "production", None)
        assert (away.is_away, there.is_away) == (True, False)
        assert not front.batcher.is_stuck
        await front.batcher.score(there, [row(1)], "production", None)
        held._runner.is_away = False
        await until(lambda: not away.is_away)
        await front.batcher.score(away, [row(1)], "production", None)


async def test_unknown_version_is_refused_as_in_one_process(engine: Engine) -> None:
    await engine.open()
    async with engine.front() as front:
        with pytest.raises(UnknownVersion):
            await asyncio.to_thread(front.versions.fetch, "reward", "9")


async def test_large_groups_cross_in_both_directions(engine: Engine) -> None:
    await engine.open(token_budget=100_000)
    async with engine.front() as front:
        model = await front.load("1")
        rows = [row(*([1 + i % 11] * 64)) for i in range(4000)]  # a megabyte
        scored = await front.batcher.score(model, rows, "production", None)
        assert scored.logits[:, 0].tolist() == [64.0 * (1 + i % 11) for i in range(4000)]


async def test_shadow_that_finds_no_room_is_dropped(engine: Engine) -> None:
    await engine.open(runs=False)
    async with engine.front() as front:
        model = await front.load("1")
        first = asyncio.create_task(front.batcher.score_shadow(model, [row(*([1] * 60))]))
        await until(lambda: engine.waiting("shadow") == 60)
        assert await front.batcher.score_shadow(model, [row(*([1] * 60))]) is None
        engine.run()
        scored = await first
        assert scored is not None
        assert scored.logits.tolist() == [[60.0, 120.0]]


async def test_a_front_that_comes_before_the_engine_waits_for_it(engine: Engine) -> None:
    async with engine.front() as front:
        with pytest.raises(RewardloopError):
            front.batcher.reserved("production", 1, None, "a").__enter__()
        loading = asyncio.create_task(front.load("1"))
        await asyncio.sleep(0.05)
        await engine.open()
        model = await loading
        assert (await front.batcher.score(model, [row(5)], "production", None)).logits.tolist() == [[5.0, 10.0]]
