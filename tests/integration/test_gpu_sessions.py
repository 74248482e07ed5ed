"""What the server asks of a GPU and gives to it, shown by a runtime that says it has one."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.adapter_graphs import lora, publish_decoder, publish_delta
from support.gpu_runtime import GpuRuntime, install
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device, choose_device
from rewardloop_server.device.kinds import LARGE_SHAPES, DeviceKind
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_server.scoring_parts import local_engine
from rewardloop_server.settings import ServeSettings

ROWS = [Encoded([1, *[4 + i % 8 for i in range(n)], 2], None, False, 9, 8) for n in (9, 30, 57, 111)]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    runtime = install(monkeypatch)
    runtime.preload_dlls()
    return runtime


def load(store: ModelStore, device: Device, manifest: Manifest) -> RewardModel:
    return SessionPool(store, device, ServerMetrics()).load(manifest, store.fetch("reward", manifest.version))


@pytest.mark.parametrize(("kind", "opened"), [("cpu", 2), ("cuda", 1), ("tensorrt", 1)])
def test_streams_of_a_gpu_share_one_session_and_so_its_weights(
    store: ModelStore, gpu: GpuRuntime, kind: DeviceKind, opened: int
) -> None:
    load(store, Device(kind, 4, spin=False, streams=2), publish_sum_version(store))
    assert len(gpu.asked) == opened


@pytest.mark.parametrize("kind", ["cpu", "cuda", "tensorrt"])
def test_a_gpu_is_timed_on_large_runs_as_well(
    store: ModelStore, gpu: GpuRuntime, kind: DeviceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewardloop_server.loading.warm._BUDGET_S", math.inf)
    longest = 1 + max(length for _, length in LARGE_SHAPES["cuda"])
    load(store, Device(kind, 1, spin=False), publish_sum_version(store, max_length=longest))
    large = {shape for shape in gpu.shapes if math.prod(shape) > 1024 and shape != (1, longest)}
    assert large == set(LARGE_SHAPES[kind])
    assert len(large) == {"cpu": 0, "cuda": 4, "tensorrt": 2}[kind]


@pytest.mark.parametrize(("kind", "raised"), [("cpu", 3), ("cuda", 0)])
async def test_threads_that_start_a_gpu_s_work_do_not_step_back(
    store: ModelStore, gpu: GpuRuntime, kind: DeviceKind, raised: int
) -> None:
    engine = local_engine(ServeSettings(device=kind, engine_nice=3, streams=1), store, ServerMetrics())
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    running = asyncio.create_task(engine.batcher.run())
    try:
        while (thread := _thread("engine-0")) is None or _niceness(thread) != mine + raised:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert raised == 3 or gpu.asked


def _thread(name: str) -> threading.Thread | None:
    return next((each for each in threading.enumerate() if each.name == name), None)


def _niceness(thread: threading.Thread) -> int:
    assert thread.native_id is not None
    return os.getpriority(os.PRIO_PROCESS, thread.native_id)


def test_a_process_uses_the_gpu_that_it_is_told_to(store: ModelStore, gpu: GpuRuntime) -> None:
    device = choose_device("tensorrt", threads=1, spin=False, device_ids=(3,))
    trunk = publish_decoder(store)
    load(store, device, publish_delta(store, trunk, lora(1)))
    assert len(gpu.asked) == 2
    for asked in gpu.asked:
        assert asked.pop("CPUExecutionProvider") == {}
        assert {name: options["device_id"] for name, options in asked.items()} == {
            "TensorrtExecutionProvider": "3",
            "CUDAExecutionProvider": "3",
        }
    assert gpu.placed == [("cuda", 3)] * len(lora(1))


def test_the_cpu_has_no_device_id(gpu: GpuRuntime) -> None:
    gpu.has_libraries = False
    gpu.preload_dlls = lambda: None  # type: ignore[method-assign]
    assert choose_device("auto", threads=1, spin=False, device_ids=(3,)) == choose_device("cpu", threads=1, spin=False)


@pytest.mark.parametrize("publish", [partial(publish_sum_version, max_length=512), publish_decoder])
def test_runs_of_a_gpu_are_padded_to_what_its_kernels_take_and_score_alike(
    store: ModelStore, gpu: GpuRuntime, publish: Callable[[ModelStore], Manifest]
) -> None:
    manifest = publish(store)
    there = load(store, Device("cuda", 1, spin=False), manifest)
    here = load(store, Device("cpu", 1, spin=False), manifest)
    gpu.shapes.clear()
    found, _ = there.run(ROWS)
    assert gpu.shapes
    assert all(length % 8 == 0 for _, length in gpu.shapes)
    np.testing.assert_allclose(found, here.run(ROWS)[0], rtol=1e-5, atol=1e-5)
    gpu.shapes.clear()
    here.run(ROWS[:1])
    assert gpu.shapes == [(1, 11)]
