"""The cases of gpu.py, and the process that runs them.

Each case yields parts of its line, so that one which is cut off has said what it found until then.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import structlog
import torch
from gpu_graphs import case_attention, case_parity, case_throughput, case_trees
from gpu_policies import case_generate, case_training
from gpu_watch import Json, Skipped, answer
from gpu_world import (
    REAL,
    TINY,
    World,
    memory_mb,
    per_second,
    plain_run,
    product_tflops,
    quantiles,
    rounded,
    rows_of,
    session_of,
    synchronise,
)

from rewardloop_server.device.choose import choose_device
from rewardloop_server.device.kinds import WantedDevice
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.engine import OutOfMemory, RewardModel
from rewardloop_server.scoring.offer import Places


def case_machine(world: World) -> Iterator[Json]:
    """Versions, providers, and what the GPU is."""
    found: Json = {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "providers": ort.get_available_providers(),
        "device": world.device.kind,
    }
    with world.loaded("llama", world.sizes.small) as model:
        found["session_providers"] = session_of(model).get_providers()
        found["provider_options"] = session_of(model).get_provider_options()
    if world.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gb": round(properties.total_memory / 1e9, 1), "cuda": torch.version.cuda}
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    yield found


def case_ceilings(world: World) -> Iterator[Json]:
    """Products of square matrices in TFLOP/s by number format, and copies in GB/s."""
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
    ):
        if not tf32 or world.is_gpu:
            yield rounded({f"{name}_tflops": product_tflops(world, dtype, tf32=tf32)})
    host = torch.empty(world.sizes.copy_bytes, dtype=torch.uint8, pin_memory=world.is_gpu)
    there = host.to(world.torch_device)
    copies = {"to_device": lambda: there.copy_(host), "from_device": lambda: host.copy_(there), "within": there.clone}
    for name, copy in copies.items():
        yield rounded({f"{name}_gb_s": world.sizes.copy_bytes * per_second(world, copy) / 1e9})


def case_memory(world: World) -> Iterator[Json]:
    """Memory over runs of many shapes: it must not grow with their number, once the largest of each length has run."""
    shape, chance = world.sizes.large[0], np.random.default_rng(0)
    most = min(4_096, shape.max_length) if world.is_gpu else 128
    lengths = chance.integers(8, most // 4, world.sizes.shapes).tolist()
    shapes = [(int(chance.integers(1, max(2, most // length))), length) for length in lengths]
    largest = [(max(1, most // length), length) for length in (8, most // 16, most // 8, most // 4)]
    with world.loaded("llama", shape) as model:
        used: dict[str, float] = {}
        for name, ran in (("largest", largest), ("many", shapes), ("many_again", shapes)):
            for count, length in ran:
                model.execute(model.lay_out(rows_of(shape, count, length), plain_run(count, length)))
            used[name] = memory_mb(world)
            yield rounded({f"after_{name}_mb": used[name]})
    check_growth(used)


def check_growth(used: dict[str, float]) -> None:
    """Raise AssertionError if memory grew by a tenth and 64 MB, in the order in which the megabytes were read."""
    first, *later = used.values()
    allowed = 64.0 + 0.1 * first
    grown = {name: mb - first for name, mb in zip(list(used)[1:], later, strict=True) if mb - first > allowed}
    if grown:
        raise AssertionError(f"memory grew by more than {allowed:.0f} MB: {rounded(grown)}")


def case_callers(world: World) -> Iterator[Json]:
    """Callers at once through the batcher, without gRPC: pairs a second and latency."""
    shape = world.sizes.small
    with world.loaded("bert", shape) as model:
        times, seconds = asyncio.run(called(world, lambda: model, world.sizes.seconds))
    yield rounded({"pairs_per_s": len(times) / seconds}) | quantiles(times)


def case_several_gpus(world: World) -> Iterator[Json]:
    """The same callers on one GPU and on all of them, which score alike."""
    count = torch.cuda.device_count() if world.is_gpu else 0
    if count < 2:
        raise Skipped("this machine does not have several GPUs")
    shape = world.sizes.small
    rows = rows_of(shape, 8, 64)
    for gpus in (1, count):
        device = replace(world.device, device_ids=tuple(range(gpus)))
        with world.loaded("bert", shape, device=device) as model:
            feeds = model.lay_out(rows, plain_run(8, 64))
            logits = [model.execute(feeds, place=place) for place in range(gpus)]
            if (apart := max(float(np.abs(each - logits[0]).max()) for each in logits)) > 1e-3:
                raise AssertionError(f"two GPUs differ by {apart:.1e}")
            times, seconds = asyncio.run(called(world, lambda m=model: m, world.sizes.seconds))
        yield {f"on_{gpus}": rounded({"pairs_per_s": len(times) / seconds}) | quantiles(times)}


def case_swap(world: World) -> Iterator[Json]:
    """The same callers while another version's sessions are opened, warmed and swapped in."""
    shape = world.sizes.small
    store, manifest = world.version("bert", shape, "float32")
    pool = SessionPool(store, world.device, ServerMetrics())
    directory = store.fetch("reward", manifest.version)
    live = [pool.load(manifest, directory)]
    swaps = 0

    async def swap(until: float) -> None:
        nonlocal swaps
        while time.monotonic() < until:
            fresh = SessionPool(store, world.device, ServerMetrics())
            live.append(await asyncio.to_thread(fresh.load, manifest, directory))
            swaps += 1
            await asyncio.sleep(0.05)

    times, seconds = asyncio.run(called(world, lambda: live[-1], world.sizes.seconds, swap))
    for model in live:
        model.close()
    yield {"swaps": swaps, "failed": 0} | rounded({"pairs_per_s": len(times) / seconds}) | quantiles(times)


async def called(
    world: World,
    model: Callable[[], RewardModel],
    seconds: float,
    beside: Callable[[float], Any] | None = None,
) -> tuple[list[float], float]:
    """Return the seconds of each call of `sizes.callers` callers, and those of all; an error of a call is raised."""
    lanes = {name: LaneLimits(max_tokens=10**7) for name in ("production", "trainer", "shadow")}
    batcher = Batcher(
        token_budget=16_384,
        lanes=lanes,
        trainer_max_wait_s=0.1,
        metrics=ServerMetrics(),
        places=Places(model().places),
    )
    engine = asyncio.create_task(batcher.run())
    rows = rows_of(world.sizes.small, world.sizes.callers, 64)
    times: list[float] = []
    started = time.monotonic()
    until = started + seconds

    async def call(row: Any) -> None:
        while time.monotonic() < until:
            asked = time.perf_counter()
            await batcher.score(model(), [row], "production", None)
            times.append(time.perf_counter() - asked)

    work = [call(row) for row in rows] + ([] if beside is None else [beside(until)])
    try:
        await asyncio.gather(*work)
    finally:
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)
    return times, time.monotonic() - started


def case_out_of_memory(world: World) -> Iterator[Json]:
    """A run for which the bound of memory does not suffice says so, and a small run after it succeeds."""
    if not world.is_gpu:
        raise Skipped("a CPU's sessions have no bound of memory")
    shape = world.sizes.large[0]
    weights_gb = 4 * sum(p.numel() for p in world.torch_model("llama", shape).parameters()) / 1e9
    device = replace(world.device, memory_gb=weights_gb + 1.0)
    with world.loaded("llama", shape, device=device) as model:
        rows = rows_of(shape, 64, 2_048)
        said = None
        try:
            model.execute(model.lay_out(rows, plain_run(64, 2_048)))
        except OutOfMemory as error:
            said = str(error)[:200]
        if said is None:
            raise AssertionError("a run of 131,072 tokens fitted into 1 GB")
        if not model.works():
            raise AssertionError("nothing runs after a run without memory")
    yield {"said": said}


def case_works(world: World) -> Iterator[Json]:
    """A small model runs. No case of its own: it tells whether the device is broken after a case that failed."""
    with world.loaded("llama", world.sizes.small) as model:
        if not model.works():
            raise AssertionError("a small model does not run")
        synchronise(world)
    yield {}


CASES: dict[str, Callable[[World], Iterator[Json]]] = {
    "machine": case_machine,
    "ceilings": case_ceilings,
    "parity": case_parity,
    "throughput": case_throughput,
    "attention": case_attention,
    "trees": case_trees,
    "memory": case_memory,
    "callers": case_callers,
    "several_gpus": case_several_gpus,
    "swap": case_swap,
    "training": case_training,
    "generate": case_generate,
    "out_of_memory": case_out_of_memory,
    "works": case_works,
}


def serve(connection: Connection, wanted: WantedDevice, is_tiny: bool | None, work: Path, graphs: Path | None) -> None:
    """Run the cases that are asked for, as `gpu.Options` says."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if wanted != "cpu" and torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # loads the libraries of CUDA, which ONNX Runtime's provider needs
    device = choose_device(wanted, threads=0, spin=False, streams=1)
    sizes = TINY if (device.kind == "cpu" if is_tiny is None else is_tiny) else REAL
    world = World(device, sizes, work, graphs)

    def run(name: str) -> Iterator[Json]:
        yield from CASES[name](world)
        if world.is_gpu:
            torch.cuda.empty_cache()  # memory is read for the whole GPU

    answer(connection, run)
