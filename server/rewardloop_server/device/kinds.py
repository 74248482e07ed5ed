"""The devices that a reward model may run on, ONNX Runtime's execution providers for each, and the engines.

The settings import this module, so it imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

DeviceKind: TypeAlias = Literal["cpu", "cuda", "tensorrt"]
# ONNX Runtime runs the graphs of reward models (onnx), or torch runs the torch models beside the graphs (torch).
EngineKind: TypeAlias = Literal["onnx", "torch"]
ENGINES: tuple[EngineKind, ...] = get_args(EngineKind)
# How adapters reach a graph: "active" or "bound" (`rewardloop_server.scoring.adapter`); "auto" is bound but for a CPU.
AdapterUse: TypeAlias = Literal["auto", "active", "bound"]
WantedDevice: TypeAlias = Literal["auto", DeviceKind]

# The devices on which torch runs reward models; ONNX Runtime has all of them.
TORCH_DEVICES: tuple[DeviceKind, ...] = ("cpu", "cuda")

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# The first provider that can run an operator runs it, so each device ends with the CPU.
PROVIDERS: Mapping[DeviceKind, tuple[str, ...]] = {
    "cpu": (_CPU,),
    "cuda": (_CUDA, _CPU),
    "tensorrt": (_TENSORRT, _CUDA, _CPU),
}

# The least bound of a run, and of a step of a load, in seconds. TensorRT builds an engine for shapes that it has not
# seen, which takes minutes.
LEAST_BOUND_S: dict[DeviceKind, float] = {"cpu": 0.0, "cuda": 0.0, "tensorrt": 600.0}

# Rows and tokens of runs that a GPU is timed on besides those of a CPU: short runs leave most of it idle.
LARGE_SHAPES: dict[DeviceKind, tuple[tuple[int, int], ...]] = {
    "cpu": (),
    "cuda": ((8, 256), (16, 512), (4, 2048), (32, 512)),
    "tensorrt": ((8, 256), (16, 512)),
}

# Rows on a GPU are padded to a multiple of these, and a run of several rows has at most so many rows * tokens**2, as a
# tree row of the greatest length has (`rewardloop_server.scoring.plan.Shapes` says why).
ROW_MULTIPLE: dict[DeviceKind, int] = {"cpu": 1, "cuda": 8, "tensorrt": 8}
MOST_SCORES: dict[DeviceKind, float] = {"cpu": math.inf, "cuda": 4096.0**2, "tensorrt": 4096.0**2}


def provider_options(name: str, memory_gb: float, *, tf32: bool, device_id: int = 0) -> dict[str, str]:
    """Return the options with which ONNX Runtime starts a provider.

    Args:
        name: The provider.
        memory_gb: Most gigabytes of a GPU that its arena may hold; 0 for no bound.
        tf32: Products of float32 matrices may be rounded to TF32. Versions are gated in float32 itself.
        device_id: Which of the GPUs that CUDA shows to this process.
    """
    if name == _CPU:
        return {}
    options = {"device_id": str(device_id)}
    if name != _CUDA:
        return options
    # An arena that grows by what is asked for holds less than one that doubles.
    options |= {"use_tf32": str(int(tf32)), "arena_extend_strategy": "kSameAsRequested"}
    if memory_gb:
        options["gpu_mem_limit"] = str(int(memory_gb * 1e9))
    return options
