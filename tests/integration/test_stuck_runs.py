"""A run that does not end: it is stopped, its request fails alone, and what cannot be stopped ends the process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.reward_graphs import VOCABULARY, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import EngineStuck, InternalError, RewardloopError
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.device.choose import Device
from rewardloop_server.guard.watch import LostThread, RunBounds, Watch
from rewardloop_server.loading.limits import LoadLimits
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.engine import RewardModel

LOOPS, HANGS = "beta", "gamma"  # at load the version is tried on the last word
BOUNDS = RunBounds(least_s=1.0, factor=20.0, grace_s=1.0)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return loaded(tmp_path_factory.mktemp("endless"))


def loaded(directory: Path) -> RewardModel:
    store = ModelStore(directory)
    manifest = publish_sum_version(store, loops_on=LOOPS, hangs_on=HANGS)
    pool = SessionPool(store, Device("cpu", 1, spin=False), ServerMetrics(), limits=LoadLimits(allows_loops=True))
    return pool.load(manifest, store.fetch("reward", manifest.version))


@asynccontextmanager
async def running(metrics: ServerMetrics) -> AsyncIterator[tuple[Batcher, asyncio.Task[None]]]:
    watch = Watch(BOUNDS.grace_s)
    lanes = {lane: LaneLimits(max_tokens=10**6) for lane in QUEUE_LANES}
    subject = Batcher(
        token_budget=4096, lanes=lanes, trainer_max_wait_s=0.05, metrics=metrics, watch=watch, bounds=BOUNDS
    )
    tasks = [asyncio.create_task(subject.run()), asyncio.create_task(watch.run())]
    try:
        yield subject, tasks[1]
    finally:
        driving, watching = tasks
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
        # The watch stops runs that do not end. One that was left would abort the interpreter at its end.
        while runs_go_on() and not watching.done():  # noqa: ASYNC110 - a thread cannot be awaited
            await asyncio.sleep(0.02)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def runs_go_on() -> bool:
    return any(thread.name.startswith("engine-") for thread in threading.enumerate())


def row(*words: str) -> list[Encoded]:
    return [Encoded([VOCABULARY[word] for word in words], None, truncated=False)]


def outcomes(answers: list[object]) -> list[str]:
    return [type(each).__name__ if isinstance(each, BaseException) else "scored" for each in answers]


async def until(batcher: Batcher, *, is_stuck: bool) -> None:
    deadline = time.monotonic() + 20
    while batcher.is_stuck is not is_stuck:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_request_whose_run_does_not_end_fails_alone_and_serving_goes_on(endless: RewardModel) -> None:
    metrics = ServerMetrics()
    async with running(metrics) as (batcher, watching):
        words = ["alpha", "delta", LOOPS, "epsilon", "zeta"]
        answers = await asyncio.gather(
            *(batcher.score(endless, row(word), "production", None) for word in words), return_exceptions=True
        )
        assert outcomes(answers) == ["scored", "scored", "InternalError", "scored", "scored"]
        await until(batcher, is_stuck=False)
        assert (await batcher.score(endless, row("alpha"), "production", None)).logits[0, 0] == VOCABULARY["alpha"]
        assert not watching.done()
    sample = metrics.registry.get_sample_value
    assert sample("rewardloop_stuck_runs_total", {"model": "reward"}) == 2
    labels = {"model": "reward", "version": endless.manifest.version}
    assert sample("rewardloop_version_stuck_runs", labels) == 2


async def test_what_waits_or_comes_while_a_run_does_not_end_is_turned_away(endless: RewardModel) -> None:
    async with running(ServerMetrics()) as (batcher, _):
        guilty = asyncio.create_task(batcher.score(endless, row(LOOPS, "alpha"), "production", None))
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(batcher.score(endless, row("alpha"), "trainer", None))
        answers = await asyncio.gather(guilty, waiting, return_exceptions=True)
        assert outcomes(answers) == ["InternalError", "EngineStuck"]
        assert isinstance(answers[1], EngineStuck)
        assert answers[1].retry_after_ms


def test_run_that_cannot_be_stopped_fails_its_requests_and_ends_the_process(tmp_path: Path) -> None:
    """In a process of its own: its thread would take a core from all later tests."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, tmp_path], env=environment, check=True, timeout=120)


async def _is_not_stopped(endless: RewardModel) -> None:
    async with running(ServerMetrics()) as (batcher, watching):
        guilty = [asyncio.create_task(batcher.score(endless, row(HANGS), "production", None)) for _ in range(2)]
        await until(batcher, is_stuck=True)
        with pytest.raises(EngineStuck), batcher.reserved("production", 1, None, ""):
            pass
        answers = await asyncio.gather(*guilty, return_exceptions=True)
        assert all(isinstance(answer, InternalError) for answer in answers)
        with pytest.raises(LostThread):
            await watching


async def test_many_requests_at_fault_in_one_run_do_not_hold_the_engine_one_by_one(endless: RewardModel) -> None:
    async with running(ServerMetrics()) as (batcher, _):
        started = time.monotonic()
        answers = await asyncio.gather(
            *(batcher.score(endless, row(LOOPS), "production", None) for _ in range(30)), return_exceptions=True
        )
        assert all(isinstance(answer, RewardloopError) for answer in answers)
        assert time.monotonic() - started < 15


def test_bound_of_a_run_is_the_larger_of_the_least_and_a_multiple_of_its_estimate() -> None:
    assert (BOUNDS.run_s(0.01), BOUNDS.run_s(1.0)) == (1.0, 20.0)


if __name__ == "__main__":
    status = 1
    try:
        asyncio.run(_is_not_stopped(loaded(Path(sys.argv[1]))))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)  # without waiting for the thread, which does not end
