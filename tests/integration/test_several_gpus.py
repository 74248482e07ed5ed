"""One server holds each version on several GPUs and deals its runs out to them: by a runtime that says it has them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from support.adapter_graphs import lora, publish_decoder, publish_delta
from support.gpu_runtime import GpuRuntime, install
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.calls.errors import NotLoadable
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.device.choose import Device
from rewardloop_server.guard.watch import RunBounds
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.engine import EngineBroken, RewardModel
from rewardloop_server.scoring.offer import Places
from rewardloop_server.scoring_parts import LocalEngine, local_engine
from rewardloop_server.settings import ServeSettings

GPUS = (0, 2, 5)
DEVICE = Device("cuda", 1, spin=False, streams=2, memory_gb=2.5, binds_adapters=True, device_ids=GPUS)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    runtime = install(monkeypatch)
    runtime.preload_dlls()
    return runtime


def load(pool: SessionPool, store: ModelStore, manifest: Manifest) -> RewardModel:
    return pool.load(manifest, store.fetch("reward", manifest.version))


def encoded(*ids: int) -> Encoded:
    return Encoded(list(ids), None, truncated=False)


@asynccontextmanager
async def engine(store: ModelStore, metrics: ServerMetrics, streams: int) -> AsyncIterator[LocalEngine]:
    """An engine on three GPUs, whose runs hold one row of at most eight tokens."""
    settings = ServeSettings(
        device="cuda", device_ids=list(GPUS), streams=streams, token_budget=8, load_probe="never", cache_mib=0
    )
    made = local_engine(settings, store, metrics)
    running = asyncio.create_task(made.batcher.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_a_graph_is_opened_once_on_each_gpu_with_the_bound_of_memory_of_each(
    store: ModelStore, gpu: GpuRuntime
) -> None:
    model = load(SessionPool(store, DEVICE, ServerMetrics()), store, publish_sum_version(store))
    options = [asked["CUDAExecutionProvider"] for asked in gpu.asked]
    assert [each["device_id"] for each in options] == ["0", "2", "5"]
    assert {each["gpu_mem_limit"] for each in options} == {"2500000000"}
    assert model.places == ("cuda:0", "cuda:2", "cuda:5")


def test_a_version_runs_at_each_place_with_what_lies_there_and_scores_alike(store: ModelStore, gpu: GpuRuntime) -> None:
    pool = SessionPool(store, DEVICE, ServerMetrics())
    trunk = publish_decoder(store)
    delta = load(pool, store, publish_delta(store, trunk, lora(1)))
    assert gpu.placed == [("cuda", number) for number in GPUS for _ in lora(1)]
    rows = [encoded(1, 4, 5, 2), encoded(1, 6, 2)]
    (run,) = delta.plan(rows)
    feeds = delta.lay_out(rows, run)
    ran: list[int] = []
    gpu.on_run = ran.append
    first, *others = (delta.execute(feeds, place=place) for place in range(3))
    assert ran == list(GPUS)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("streams", [1, 2])
async def test_as_many_runs_are_at_once_as_there_are_streams_on_all_gpus(
    store: ModelStore, gpu: GpuRuntime, streams: int
) -> None:
    """Each run waits until all GPUs have as many as they may have, and none has more."""
    together = threading.Barrier(len(GPUS) * streams)
    counting = threading.Lock()
    present: Counter[int] = Counter()
    most: Counter[int] = Counter()

    def meet(device_id: int) -> None:
        with counting:
            present[device_id] += 1
            most[device_id] = max(most[device_id], present[device_id])
        together.wait(60)
        with counting:
            present[device_id] -= 1

    async with engine(store, ServerMetrics(), streams) as made:
        model = load(made.pool, store, publish_sum_version(store))
        gpu.on_run = meet
        groups = [made.batcher.score(model, [encoded(*[1] * 8)], "production", None) for _ in range(30)]
        found = await asyncio.gather(*groups)
    assert [each.logits[0, 0] for each in found] == [8] * 30
    assert most == dict.fromkeys(GPUS, streams)


async def test_results_keep_their_order_though_gpus_differ_in_speed(store: ModelStore, gpu: GpuRuntime) -> None:
    metrics = ServerMetrics()
    async with engine(store, metrics, streams=1) as made:
        model = load(made.pool, store, publish_sum_version(store))
        gpu.on_run = lambda device_id: time.sleep(0.002 * device_id)
        ids = itertools.cycle(range(1, 12))
        groups = [[encoded(*itertools.islice(ids, 1 + (i + j) % 8)) for j in range(1 + i % 5)] for i in range(40)]
        scores = [made.batcher.score(model, rows, "trainer", None, f"caller {i % 3}") for i, rows in enumerate(groups)]
        found = await asyncio.gather(*scores)
    for scored, rows in zip(found, groups, strict=True):
        assert scored.logits[:, 0].tolist() == [sum(row.ids) for row in rows]
    for name in model.places:
        assert metrics.registry.get_sample_value("rewardloop_run_seconds_total", {"device": name})


async def test_a_gpu_on_which_nothing_runs_any_more_ends_the_engine_though_the_others_work(
    store: ModelStore, gpu: GpuRuntime
) -> None:
    metrics, noticed = ServerMetrics(), threading.Event()
    subject = Batcher(
        token_budget=8,
        lanes={lane: LaneLimits(max_tokens=10**6) for lane in QUEUE_LANES},
        trainer_max_wait_s=0.05,
        metrics=metrics,
        places=Places(DEVICE.names),
        bounds=RunBounds(broken_s=0.1),
    )
    model = load(SessionPool(store, DEVICE, metrics), store, publish_sum_version(store))

    def sticky(device_id: int) -> None:
        if device_id == 2:
            raise RuntimeError("CUDA error 700: an illegal memory access was encountered")
        noticed.wait(60)

    gpu.on_run = sticky
    running = asyncio.create_task(subject.run())
    scores = [
        asyncio.create_task(subject.score(model, [encoded(*[1] * 8)], "production", None)) for _ in range(len(GPUS))
    ]
    try:
        async with asyncio.timeout(60):
            while not (subject.is_stuck or running.done()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            noticed.set()
            with pytest.raises(EngineBroken, match="version 1 runs nothing any more on cuda:2"):
                await running
    finally:
        noticed.set()
        for score in scores:
            score.cancel()
        await asyncio.gather(*scores, return_exceptions=True)


def test_a_version_that_one_gpu_does_not_run_is_refused_by_that_gpu_s_name(store: ModelStore, gpu: GpuRuntime) -> None:
    pool = SessionPool(store, DEVICE, ServerMetrics())
    trunk = publish_decoder(store)
    kept = load(pool, store, trunk)
    delta, other = publish_delta(store, trunk, lora(1)), publish_sum_version(store)

    def broken(device_id: int) -> None:
        if device_id == 5:
            raise RuntimeError("it is broken")

    gpu.on_run = broken
    for manifest in (delta, other):
        with pytest.raises(NotLoadable, match=r"does not run on .* on cuda:5: RuntimeError"):
            load(pool, store, manifest)
    gpu.gpus = 5
    with pytest.raises(NotLoadable, match="does not load on cuda:5: RuntimeError"):
        load(pool, store, other)
    kept.close()
    gc.collect()
    assert pool.sessions == len(gpu.sessions) == 0


def test_closing_the_versions_frees_what_lies_on_every_gpu(store: ModelStore, gpu: GpuRuntime) -> None:
    pool = SessionPool(store, DEVICE, ServerMetrics())
    trunk = publish_decoder(store)
    models = [load(pool, store, trunk), load(pool, store, publish_delta(store, trunk, lora(1)))]
    assert len(gpu.sessions) == len(GPUS)
    assert len(gpu.OrtValue.places) == len(GPUS) * len(lora(1))
    for model in models:
        model.close()
    gc.collect()
    assert len(gpu.sessions) == len(gpu.OrtValue.places) == 0
