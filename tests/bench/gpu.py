"""What a GPU does with our graphs: one run of at most nine minutes, one JSON line for each case.

    python tests/bench/gpu.py [--device cuda|cpu] [--tiny] [--only CASE ...] [--seconds 540] [--out FILE]

A case that fails says why, and the next one is tried if the device still works; else every case that is left is skipped
by its name, as are those for which no time is left. The exit status is 1 if a case failed or none ran. On a CPU, where
`--tiny` is the default, the same cases run on small models, so that the script itself is tested without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before ONNX Runtime is imported: each Attention says which kernel it took.
os.environ.setdefault("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO", "1")

import numpy as np
import onnx
import onnxruntime as ort
import structlog
import torch
from deltas import adapter_version
from gpu_world import (
    PAD,
    REAL,
    TINY,
    Family,
    Precision,
    Shape,
    World,
    adapter_of,
    group_of,
    memory_mb,
    per_second,
    plain_run,
    printed,
    quantiles,
    rows_of,
    synchronise,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from rewardloop.formats.graphs.inputs import tree_rows
from rewardloop_server.device.choose import Device, choose_device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.engine import OutOfMemory, RewardModel
from rewardloop_trainer.export.attention.branches import without_trees
from rewardloop_trainer.export.parity import torch_logits

Json = dict[str, Any]
FAMILIES: tuple[Family, ...] = ("qwen2", "llama", "bert")
# The largest difference of a logit from torch's in float32, by how the graph computes. The heads of these models are
# random, so that logits are about 1.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 1e-1}
_KERNEL = re.compile(r"SdpaKernel=(\w+)")


class Skipped(Exception):
    """A case that has nothing to show here; the message says why."""


def case_machine(world: World) -> Json:
    """Versions, providers, and what the GPU is."""
    found: Json = {
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "providers": ort.get_available_providers(),
        "device": world.device.kind,
    }
    with world.loaded("llama", world.sizes.small) as model:
        found["session_providers"] = model._sessions.alone.get_providers()
        found["provider_options"] = model._sessions.alone.get_provider_options()
    if world.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gb": round(properties.total_memory / 1e9, 1), "cuda": torch.version.cuda}
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
            found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    return found


def case_ceilings(world: World) -> Json:
    """Products of square matrices in TFLOP/s by number format, and copies in GB/s."""
    size, found = world.sizes.square, dict[str, float]()
    tensor = torch.randn(size, size, device=world.torch_device)
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
    ):
        if tf32 and not world.is_gpu:
            continue
        with torch_tf32(tf32):
            factor = tensor.to(dtype)
            found[f"{name}_tflops"] = 2 * size**3 * per_second(world, lambda f=factor: f @ f) / 1e12
    host = torch.empty(world.sizes.copy_bytes, dtype=torch.uint8, pin_memory=world.is_gpu)
    there = host.to(world.torch_device)
    copies = {"to_device": lambda: there.copy_(host), "from_device": lambda: host.copy_(there), "within": there.clone}
    for name, copy in copies.items():
        found[f"{name}_gb_s"] = world.sizes.copy_bytes * per_second(world, copy) / 1e9
    return rounded(found)


def case_parity(world: World) -> Json:
    """Rows, tree rows and adapters of small models in each number format against torch in float32, and the kernels."""
    shape, found, worst = world.sizes.small, dict[str, Json](), 0.0
    for family in FAMILIES:
        for name in TOLERANCES:
            if name == "tf32" and not world.is_gpu:
                continue
            precision: Precision = "float32" if name == "tf32" else name  # type: ignore[assignment]
            device = world.with_tf32() if name == "tf32" else world.device
            with printed() as said, world.loaded(family, shape, precision, device) as model:
                differences = parity_of(world, family, model, device)
            kernels = sorted(set(_KERNEL.findall(said())))
            found[f"{family} {name}"] = rounded(differences) | ({"kernels": kernels} if kernels else {})
            worst = max(worst, *(value / TOLERANCES[name] for value in differences.values()))
    if not worst <= 1.0:
        raise AssertionError(f"a logit differs by {worst:.3g} times what is allowed: {json.dumps(found)}")
    return {"worst_of_allowed": round(worst, 4), **found}


def parity_of(world: World, family: Family, model: RewardModel, device: Device) -> dict[str, float]:
    """Return the largest difference of plain rows and of tree rows from torch, and of an active and of a bound adapter
    from the same values as plain inputs."""
    shape = world.sizes.small
    mixed = [row for i, n in enumerate((5, 31, 64, 17)) for row in rows_of(shape, 1, n, seed=i)]
    expected = torch_logits(world.torch_model(family, shape), mixed, PAD)
    found = {"rows": difference(model.run(mixed)[0], expected)}
    if family == "bert":
        return found
    group = group_of(shape, 20, 4, 9)
    of_group = torch_logits(world.torch_model(family, shape), group, PAD)
    for name, shares in (("trees", False), ("shared_prompts", True)):
        inputs = tree_rows([group], 20 + 4 * 9, PAD, shares_prompt=shares)
        found[name] = difference(model._sessions.alone.run(["logits"], inputs)[0], of_group)
    store, manifest = world.version(family, shape, model.manifest.precision)  # type: ignore[arg-type]
    values = adapter_of(model)
    delta = adapter_version(store, manifest, values)
    active, bound_delta = (
        SessionPool(store, replace(device, binds_adapters=binds), ServerMetrics()).load(
            delta, store.fetch("reward", delta.version)
        )
        for binds in (False, True)
    )
    feeds = active.lay_out(mixed, plain_run(len(mixed), 64))
    session = active._sessions.alone
    by_hand = session.run(["logits"], {**feeds.inputs, **values})[0]
    found["adapter"] = difference(active.execute(feeds), by_hand)
    found["bound_adapter"] = difference(bound_delta.execute(feeds), by_hand)
    if not difference(by_hand, expected) > 1e-3:
        raise AssertionError("the adapter changes nothing")
    active.close()
    bound_delta.close()
    return found


def case_attention(world: World) -> Json:
    """An encoder whose attention takes lengths beside one with masks: kernels, copies to and from the CPU, tokens/s."""
    shape = world.sizes.large[0]
    count, length = world.sizes.encoder_rows
    chance = np.random.default_rng(0)
    rows = [rows_of(shape, 1, int(chance.integers(length // 2, length + 1)), seed=i)[0] for i in range(count)]
    precisions: tuple[Precision, ...] = ("float16", "float32") if world.is_gpu else ("float32",)
    found: Json = {}
    for precision in precisions:
        logits = {}
        for name, masks in (("lengths", False), ("masks", True)):
            with printed() as said, world.loaded("bert", shape, precision, masks=masks) as model:
                feeds = model.lay_out(rows, plain_run(count, length))
                logits[name] = model.execute(feeds)
                rate = per_second(world, bound_run(world, model._sessions.alone, feeds.inputs))
            figures = rounded({"tokens_per_s": rate * feeds.tokens})
            store, manifest = world.version("bert", shape, precision, masks)
            figures |= {
                "kernels": sorted(set(_KERNEL.findall(said()))),
                "copies": copies_of(world, store.fetch("reward", manifest.version) / "model.onnx"),
            }
            found[f"{precision} {name}"] = figures
        apart = difference(logits["lengths"], logits["masks"])
        if not apart <= TOLERANCES[precision]:
            raise AssertionError(f"lengths and masks differ by {apart:.3g} in {precision}")
        found[f"{precision} difference"] = float(f"{apart:.2g}")
    return found


def copies_of(world: World, path: Path) -> int:
    """Return how many nodes ONNX Runtime adds to a graph that copy between the device and the CPU."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory() as made:
        settings.optimized_model_filepath = str(Path(made) / "optimised.onnx")
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        ort.InferenceSession(
            str(path), settings, list(world.device.providers), provider_options=world.device.provider_options
        )
        nodes = onnx.load(settings.optimized_model_filepath, load_external_data=False).graph.node
        return sum(node.op_type in ("MemcpyToHost", "MemcpyFromHost") for node in nodes)


def case_trees(world: World) -> Json:
    """A group as a row a response, as a tree row with a mask, and as one over its prompt's keys and values."""
    shape = world.sizes.large[0]
    prompt, responses, tokens = world.sizes.tree
    group = group_of(shape, prompt, responses, tokens)
    real = prompt + responses * tokens
    precisions: tuple[Precision, ...] = ("float16", "float32") if world.is_gpu else ("float32",)
    found: Json = {}
    for precision in precisions:
        logits = {}
        with printed() as said, world.loaded("llama", shape, precision) as model:
            session = model._sessions.alone
            runs = {
                "rows": model.lay_out(group, plain_run(responses, prompt + tokens)).inputs,
                "mask": tree_rows([group], real, PAD),
                "keys and values": tree_rows([group], real, PAD, shares_prompt=True),
            }
            for name, inputs in runs.items():
                logits[name] = session.run(["logits"], inputs)[0]
                rate = per_second(world, bound_run(world, session, inputs))
                found[f"{precision} {name}"] = rounded({"groups_per_s": rate})
        found[f"{precision} kernels"] = sorted(set(_KERNEL.findall(said())))
        apart = max(difference(logits[name], logits["rows"]) for name in ("mask", "keys and values"))
        if not apart <= TOLERANCES[precision]:
            raise AssertionError(f"the ways differ by {apart:.3g} in {precision}")
        found[f"{precision} difference"] = float(f"{apart:.2g}")
    return found


def case_throughput(world: World) -> Json:
    """Tokens a second of plain runs, of bound ones and of CUDA graphs, beside torch in the same format."""
    found: Json = {}
    for shape in world.sizes.large:
        parameters = sum(p.numel() for p in world.torch_model("llama", shape).trunk.layers.parameters())  # type: ignore[union-attr]
        with world.loaded("llama", shape, "float16" if world.is_gpu else "float32") as model:
            for tokens in world.sizes.run_tokens:
                length = min(tokens, 512, shape.max_length)
                rows = rows_of(shape, max(1, tokens // length), length)
                feeds = model.lay_out(rows, plain_run(len(rows), length))
                session = model._sessions.alone
                figures = {
                    "plain": tokens * per_second(world, lambda f=feeds: model.execute(f)),
                    "bound": tokens * per_second(world, bound_run(world, session, feeds.inputs)),
                }
                with suppress(Skipped):
                    figures["graphs"] = tokens * graph_runs(world, shape, feeds.inputs)
                figures["torch"] = tokens * torch_runs(world, shape, rows)
                figures["bound_tflops"] = figures["bound"] * 2 * parameters / 1e12
                found[f"{shape.name}, {tokens} tokens"] = rounded(figures)
    return found


def bound_run(world: World, session: Any, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
    """Return a run whose inputs lie on the device already and whose logits stay there."""
    binding = bound(world, session, inputs)
    return lambda: session.run_with_iobinding(binding)


def bound(world: World, session: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Bind copies of the inputs, and the logits, to memory of the device."""
    kind = "cuda" if world.is_gpu else "cpu"
    binding = session.io_binding()
    for name, array in inputs.items():
        if array.size:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), kind, 0))
        else:  # only its shape is read
            binding.bind_cpu_input(name, array)
    binding.bind_output("logits", kind, 0)
    return binding


def graph_runs(world: World, shape: Shape, inputs: dict[str, np.ndarray]) -> float:
    """Return runs a second of a captured CUDA graph."""
    if not world.is_gpu:
        raise Skipped("a CPU has no CUDA graphs")
    store, manifest = world.version("llama", shape, "float16")
    options = [{**world.device.provider_options[0], "enable_cuda_graph": "1"}, {}]
    path = store.fetch("reward", manifest.version) / "model.onnx"
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    plain = without_trees(onnx.load(str(path), load_external_data=False)).SerializeToString()
    session = ort.InferenceSession(plain, settings, list(world.device.providers), provider_options=options)
    return per_second(world, bound_run(world, session, inputs))


def torch_runs(world: World, shape: Shape, rows: Sequence[Any]) -> float:
    """Return forward passes a second of the trunk in torch, in the format that the graph has."""
    dtype = torch.float16 if world.is_gpu else torch.float32
    trunk: Any = world.torch_model("llama", shape).trunk
    trunk = trunk.to(world.torch_device, dtype)
    ids = torch.tensor([row.ids for row in rows], device=world.torch_device)
    try:
        with torch.inference_mode():
            return per_second(world, lambda: trunk(input_ids=ids, use_cache=False))
    finally:
        trunk.to("cpu", torch.float32)


def case_memory(world: World) -> Json:
    """Memory over runs of many shapes: it must not grow with their number."""
    shape, chance = world.sizes.large[0], np.random.default_rng(0)
    most = min(4_096, shape.max_length) if world.is_gpu else 128
    with world.loaded("llama", shape) as model:
        after: list[float] = []
        for _ in range(2):  # the second time it has seen every shape
            for _ in range(world.sizes.shapes):
                length = int(chance.integers(8, most // 4))
                count = int(chance.integers(1, max(2, most // length)))
                rows = rows_of(shape, count, length)
                model.execute(model.lay_out(rows, plain_run(count, length)))
            after.append(memory_mb(world))
    return rounded({"after_mb": after[0], "after_again_mb": after[1], "grown_mb": after[1] - after[0]})


def case_callers(world: World) -> Json:
    """Callers at once through the batcher, without gRPC: pairs a second and latency."""
    shape = world.sizes.small
    with world.loaded("bert", shape) as model:
        times, seconds = asyncio.run(called(world, lambda: model, world.sizes.seconds))
    return rounded({"pairs_per_s": len(times) / seconds}) | quantiles(times)


def case_swap(world: World) -> Json:
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
    return {"swaps": swaps, "failed": 0} | rounded({"pairs_per_s": len(times) / seconds}) | quantiles(times)


async def called(
    world: World,
    model: Callable[[], RewardModel],
    seconds: float,
    beside: Callable[[float], Any] | None = None,
) -> tuple[list[float], float]:
    """Return the seconds of each call of `sizes.callers` callers, and those of all; an error of a call is raised."""
    lanes = {name: LaneLimits(max_tokens=10**7) for name in ("production", "trainer", "shadow")}
    batcher = Batcher(token_budget=16_384, lanes=lanes, trainer_max_wait_s=0.1, metrics=ServerMetrics())
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


def case_training(world: World) -> Json:
    """Steps a second of DPO on a pair, and tokens a second of greedy decoding, by number format."""
    shape, found = world.sizes.large[0], dict[str, float]()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=shape.width * 4,
        max_position_embeddings=shape.max_length,
        pad_token_id=PAD,
        eos_token_id=None,
    )
    tokens = world.sizes.policy_tokens
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        if tf32 and not world.is_gpu:
            continue
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config).to(world.torch_device, dtype)
        ids = torch.randint(2, shape.vocabulary, (4, tokens), device=world.torch_device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        with torch_tf32(tf32):
            found[f"{name}_dpo_steps_per_s"] = per_second(world, lambda m=model, i=ids, o=optimizer: dpo_step(m, i, o))
            with torch.inference_mode():
                decode = lambda m=model, i=ids: m.generate(i[:, :8], max_new_tokens=16, do_sample=False)  # noqa: E731
                found[f"{name}_decoded_tokens_per_s"] = 4 * 16 * per_second(world, decode)
        del model, optimizer
    return rounded(found)


def dpo_step(model: Any, ids: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step of DPO whose reference is the policy itself: two rows chosen, two rejected."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    said = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).sum(-1)
    margin = (said - said.detach()).view(2, 2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (margin[0] - margin[1])).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def case_out_of_memory(world: World) -> Json:
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
    return {"said": said}


CASES: dict[str, Callable[[World], Json]] = {
    "machine": case_machine,
    "ceilings": case_ceilings,
    "parity": case_parity,
    "attention": case_attention,
    "trees": case_trees,
    "callers": case_callers,
    "swap": case_swap,
    "throughput": case_throughput,
    "memory": case_memory,
    "training": case_training,
    "out_of_memory": case_out_of_memory,
}


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference; infinite if a logit is not finite."""
    found = float(np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).max())
    return found if math.isfinite(found) else math.inf


def rounded(figures: dict[str, float]) -> Json:
    """Return the figures with four digits."""
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


@contextmanager
def torch_tf32(is_allowed: bool) -> Iterator[None]:
    """Let torch round products of float32 matrices to TF32 in the block, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def still_works(world: World) -> bool:
    """Return whether the device runs a small model."""
    try:
        with world.loaded("llama", world.sizes.small) as model:
            synchronise(world)
            return model.works()
    except Exception:  # whatever torch or ONNX Runtime raises, the device does not work
        return False


def run_cases(world: World, names: Sequence[str], until: float, say: Callable[[Json], None]) -> bool:
    """Run the cases in order, and say what came of each. Return whether none failed and at least one ran."""
    failed, ran, why = False, False, ""
    for name in names:
        if not why and time.monotonic() > until:
            why = "no time is left"
        if why:
            say({"case": name, "skipped": why})
            continue
        started = time.monotonic()
        try:
            figures = CASES[name](world)
        except Skipped as reason:
            say({"case": name, "skipped": str(reason)})
            continue
        except Exception as error:  # of torch, ONNX Runtime and the case itself; its line says which
            failed = True
            traceback.print_exc()
            say({"case": name, "ok": False, "error": f"{type(error).__name__}: {error}"[:2_000]})
            if not still_works(world):
                why = f"the device runs nothing since {name}"
            continue
        ran = True
        say({"case": name, "ok": True, "seconds": round(time.monotonic() - started, 2), **figures})
    return ran and not failed


def main() -> int:
    """Run the script. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "tensorrt"), default="auto")
    parser.add_argument("--tiny", action=argparse.BooleanOptionalAction, help="small models (default: on a CPU)")
    parser.add_argument("--only", action="append", choices=tuple(CASES), default=[], metavar="CASE")
    parser.add_argument("--seconds", type=float, default=540.0, help="after these no case is begun (default 540)")
    parser.add_argument("--work", type=Path, help="where models are kept (default: a temporary directory)")
    parser.add_argument("--out", type=Path, help="write the lines into this file, too")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if options.device != "cpu" and torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # loads the libraries of CUDA, which ONNX Runtime's provider needs
    device: Device = choose_device(options.device, threads=0, spin=False, streams=1)
    is_tiny = device.kind == "cpu" if options.tiny is None else options.tiny
    lines: list[str] = []

    def say(line: Json) -> None:
        lines.append(json.dumps(line))
        print(lines[-1], flush=True)
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n")

    with tempfile.TemporaryDirectory(prefix="rewardloop-gpu-") as made:
        world = World(device, TINY if is_tiny else REAL, options.work or Path(made))
        names = [name for name in CASES if not options.only or name in options.only]
        return 0 if run_cases(world, names, until, say) else 1


if __name__ == "__main__":
    sys.exit(main())
