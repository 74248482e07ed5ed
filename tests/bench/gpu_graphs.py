"""The cases of gpu.py about what a graph computes, by which kernels, and how fast."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from deltas import adapter_version
from gpu_watch import Json
from gpu_world import (
    FAMILIES,
    PAD,
    Family,
    Precision,
    Shape,
    World,
    adapter_of,
    difference,
    group_of,
    per_second,
    plain_run,
    printed,
    product_tflops,
    rounded,
    rows_of,
    session_of,
)

from rewardloop.formats.graphs.inputs import tree_rows
from rewardloop.formats.text import Encoded
from rewardloop_server.device.choose import Device
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.engine import RewardModel
from rewardloop_trainer.export.attention.branches import without_trees
from rewardloop_trainer.export.parity import torch_logits

# The largest difference of a logit from torch's in float32, by how the graph computes. The heads of these models are
# random, so that logits are about 1.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-2, "float16": 5e-2, "bfloat16": 1e-1}
# What one H200 makes of products of bfloat16 matrices. The stated ceilings follow from it: a run takes two operations a
# parameter and token, so 100M parameters allow 3.95M tokens a second, 1B 395,000 and 8B 49,000.
STATED_TFLOPS = 790.0
# In longer runs starting the kernels takes next to nothing of the time.
_MOST_GRAPH_TOKENS = 2_048
_KERNEL = re.compile(r"SdpaKernel=(\w+)")


def case_parity(world: World) -> Iterator[Json]:
    """Rows, tree rows and adapters of small models in each number format against torch in float32, and the kernels."""
    shape, wrong = world.sizes.small, list[str]()
    for family in FAMILIES:
        for name in TOLERANCES:
            if name == "tf32" and not world.is_gpu:
                continue
            precision: Precision = "float32" if name == "tf32" else name  # type: ignore[assignment]
            device = world.with_tf32() if name == "tf32" else world.device
            with printed() as said, world.loaded(family, shape, precision, device) as model:
                differences = parity_of(world, family, model, device)
            kernels = sorted(set(_KERNEL.findall(said())))
            yield {f"{family} {name}": rounded(differences) | ({"kernels": kernels} if kernels else {})}
            wrong += [f"{family} {name} {what}" for what, value in differences.items() if not value <= TOLERANCES[name]]
    if wrong:
        raise AssertionError(f"logits differ by more than is allowed: {', '.join(wrong)}")


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
        found[name] = difference(session_of(model).run(["logits"], inputs)[0], of_group)
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
    session = session_of(active)
    by_hand = session.run(["logits"], {**feeds.inputs, **values})[0]
    found["adapter"] = difference(active.execute(feeds), by_hand)
    found["bound_adapter"] = difference(bound_delta.execute(feeds), by_hand)
    if not difference(by_hand, expected) > 1e-3:
        raise AssertionError("the adapter changes nothing")
    active.close()
    bound_delta.close()
    return found


def case_attention(world: World) -> Iterator[Json]:
    """An encoder whose attention takes lengths beside one with masks: kernels, copies to and from the CPU, tokens/s."""
    shape = world.sizes.large[0]
    count, length = world.sizes.encoder_rows
    chance = np.random.default_rng(0)
    rows = [rows_of(shape, 1, int(chance.integers(length // 2, length + 1)), seed=i)[0] for i in range(count)]
    precisions: tuple[Precision, ...] = ("float16", "float32") if world.is_gpu else ("float32",)
    for precision in precisions:
        logits = {}
        for name, masks in (("lengths", False), ("masks", True)):
            with printed() as said, world.loaded("bert", shape, precision, masks=masks) as model:
                feeds = model.lay_out(rows, plain_run(count, length))
                logits[name] = model.execute(feeds)
                rate = per_second(world, bound_run(world, session_of(model), feeds.inputs))
            figures = rounded({"tokens_per_s": rate * feeds.tokens})
            store, manifest = world.version("bert", shape, precision, masks)
            figures |= {
                "kernels": sorted(set(_KERNEL.findall(said()))),
                "copies": copies_of(world, store.fetch("reward", manifest.version) / "model.onnx"),
            }
            yield {f"{precision} {name}": figures}
        apart = difference(logits["lengths"], logits["masks"])
        yield rounded({f"{precision} difference": apart})
        if not apart <= TOLERANCES[precision]:
            raise AssertionError(f"lengths and masks differ by {apart:.3g} in {precision}")


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


def case_trees(world: World) -> Iterator[Json]:
    """A group as a row a response, as a tree row with a mask, and as one over its prompt's keys and values."""
    shape = world.sizes.large[0]
    prompt, responses, tokens = world.sizes.tree
    group = group_of(shape, prompt, responses, tokens)
    real = prompt + responses * tokens
    precisions: tuple[Precision, ...] = ("float16", "float32") if world.is_gpu else ("float32",)
    for precision in precisions:
        logits = {}
        with printed() as said, world.loaded("llama", shape, precision) as model:
            session = session_of(model)
            runs = {
                "rows": model.lay_out(group, plain_run(responses, prompt + tokens)).inputs,
                "mask": tree_rows([group], real, PAD),
                "keys and values": tree_rows([group], real, PAD, shares_prompt=True),
            }
            for name, inputs in runs.items():
                logits[name] = session.run(["logits"], inputs)[0]
                rate = per_second(world, bound_run(world, session, inputs))
                yield {f"{precision} {name}": rounded({"groups_per_s": rate})}
        yield {f"{precision} kernels": sorted(set(_KERNEL.findall(said())))}
        apart = max(difference(logits[name], logits["rows"]) for name in ("mask", "keys and values"))
        yield rounded({f"{precision} difference": apart})
        if not apart <= TOLERANCES[precision]:
            raise AssertionError(f"the ways differ by {apart:.3g} in {precision}")


def case_throughput(world: World) -> Iterator[Json]:
    """Tokens a second of plain runs, of bound ones and of CUDA graphs, beside torch in the same format.

    Each has its share of two ceilings, the measured product of bfloat16 matrices and the stated one, counting two
    operations a parameter of the layers and token. Attention is work beside it, so that 1 cannot be reached.
    """
    tflops, failed = product_tflops(world, torch.bfloat16), list[str]()
    yield rounded({"measured_tflops": tflops, "stated_tflops": STATED_TFLOPS})
    for shape in world.sizes.large:
        layers: Any = world.torch_model("llama", shape).trunk.layers
        operations = 2 * sum(p.numel() for p in layers.parameters())
        yield rounded({f"{shape.name} stated_tokens_per_s": STATED_TFLOPS * 1e12 / operations})
        for precision in ("float16", "bfloat16"):
            for tokens, way, rate_of in throughputs(world, shape, precision):
                name = f"{shape.name} {precision}, {tokens} tokens, {way}"
                try:
                    tokens_per_s = tokens * rate_of()
                except Exception as error:  # a way that does not work leaves the others to be measured
                    failed.append(f"{name}: {error}"[:500])
                    continue
                made = tokens_per_s * operations / 1e12
                shares = {"of_measured": made / tflops, "of_stated": made / STATED_TFLOPS}
                yield {name: rounded({"tokens_per_s": tokens_per_s} | shares)}
    if failed:
        raise AssertionError("; ".join(failed))


def throughputs(world: World, shape: Shape, precision: Precision) -> Iterator[tuple[int, str, Callable[[], float]]]:
    """Yield each way to run so many tokens: the tokens, its name, and what measures its runs a second."""
    trunk: Any = copy.deepcopy(world.torch_model("llama", shape).trunk)
    trunk = trunk.to(world.torch_device, getattr(torch, precision))

    def torch_rate(rows: Sequence[Encoded]) -> float:
        ids = torch.tensor([row.ids for row in rows], device=world.torch_device)
        with torch.inference_mode():
            return per_second(world, lambda: trunk(input_ids=ids, use_cache=False))

    with world.loaded("llama", shape, precision) as model:
        for tokens in world.sizes.run_tokens:
            length = min(tokens, 512, shape.max_length)
            rows = rows_of(shape, max(1, tokens // length), length)
            feeds = model.lay_out(rows, plain_run(len(rows), length))
            session = session_of(model)
            yield tokens, "plain", lambda f=feeds: per_second(world, lambda: model.execute(f))
            yield tokens, "bound", lambda s=session, f=feeds: per_second(world, bound_run(world, s, f.inputs))
            if world.is_gpu and tokens <= _MOST_GRAPH_TOKENS:
                yield tokens, "graphs", partial(graph_rate, world, shape, precision, feeds.inputs)
            yield tokens, "torch", partial(torch_rate, rows)


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


def graph_rate(world: World, shape: Shape, precision: Precision, inputs: dict[str, np.ndarray]) -> float:
    """Return runs a second of a captured CUDA graph."""
    store, manifest = world.version("llama", shape, precision)
    options = [{**world.device.provider_options[0], "enable_cuda_graph": "1"}, {}]
    path = store.fetch("reward", manifest.version) / "model.onnx"
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    plain = without_trees(onnx.load(str(path), load_external_data=False)).SerializeToString()
    session = ort.InferenceSession(plain, settings, list(world.device.providers), provider_options=options)
    return per_second(world, bound_run(world, session, inputs))
