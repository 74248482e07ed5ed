"""The devices that a reward model may run on, and ONNX Runtime's execution providers for each.

The settings import this module, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

DeviceKind: TypeAlias = Literal["cpu", "cuda", "tensorrt"]
WantedDevice: TypeAlias = Literal["auto", DeviceKind]

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
