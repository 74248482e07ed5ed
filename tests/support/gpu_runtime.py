"""An ONNX Runtime as it is on a machine with GPUs. Its sessions say that they run where they were asked to, and run on
the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

_USERS = ("device.choose", "loading.opening", "loading.opened", "scoring.adapter")


class GpuRuntime:
    """Stands in for the module onnxruntime.

    Attributes:
        gpus: How many GPUs CUDA shows to the process.
        asked: For each session that was opened the options of its providers, by their names.
        shapes: Rows and tokens of each run, in order.
        placed: Where the values of adapters were put: the memory's name and the device's id.
        has_libraries: CUDA's libraries were loaded, without which no session starts on a GPU.
        on_run: Called with the GPU's id in each run. What it raises fails the run.
        sessions: Those that have not been freed.
    """

    __version__ = ort.__version__

    def __init__(self) -> None:
        self.gpus = 8
        self.asked: list[dict[str, dict[str, str]]] = []
        self.shapes: list[tuple[int, int]] = []
        self.placed: list[tuple[str, int]] = []
        self.has_libraries = False
        self.on_run: Callable[[int], None] = lambda device_id: None
        self.sessions = weakref.WeakSet[_GpuSession]()
        self.OrtValue = _Values(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.has_libraries = True

    def InferenceSession(
        self, graph: Any, options: Any = None, providers: Any = (), provider_options: Any = ()
    ) -> _GpuSession:
        asked = dict(zip(providers, provider_options, strict=True))
        self.asked.append(asked)
        taken = list(providers) if self.has_libraries else ["CPUExecutionProvider"]
        device_id = int(asked.get("CUDAExecutionProvider", {}).get("device_id", 0))
        if device_id >= self.gpus:
            raise RuntimeError("CUDA failure 101: invalid device ordinal")
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        opened = _GpuSession(self, session, taken, device_id)
        self.sessions.add(opened)
        return opened


class _GpuSession:
    def __init__(
        self, runtime: GpuRuntime, session: ort.InferenceSession, providers: list[str], device_id: int
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._providers = providers
        self._device_id = device_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, names: list[str], inputs: dict[str, npt.NDArray[Any]], options: Any = None) -> Any:
        rows, tokens = inputs["input_ids"].shape
        self._runtime.shapes.append((rows, tokens))
        self._runtime.on_run(self._device_id)
        return self._session.run(names, inputs, options)

    def io_binding(self) -> _Binding:
        return _Binding(self._runtime.OrtValue, self._session.io_binding(), self._device_id)

    def run_with_iobinding(self, binding: _Binding, options: Any = None) -> None:
        self._runtime.on_run(self._device_id)
        self._session.run_with_iobinding(binding.bound, options)


class _Binding:
    """Refuses values that lie on another GPU. ONNX Runtime would copy them in each run."""

    def __init__(self, values: _Values, bound: ort.IOBinding, device_id: int) -> None:
        self.bound = bound
        self._values = values
        self._device_id = device_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bound, name)

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        if (there := self._values.places[value]) != self._device_id:
            raise RuntimeError(f"{name} lies on GPU {there}, and the session is on GPU {self._device_id}")
        self.bound.bind_ortvalue_input(name, value)


class _Values:
    def __init__(self, runtime: GpuRuntime) -> None:
        self._runtime = runtime
        self.places = weakref.WeakKeyDictionary[ort.OrtValue, int]()

    def ortvalue_from_numpy(self, array: npt.NDArray[np.float32], memory: str, device_id: int) -> ort.OrtValue:
        self._runtime.placed.append((memory, device_id))
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self.places[value] = device_id
        return value


def install(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    """Let the server use such a runtime."""
    runtime = GpuRuntime()
    for user in _USERS:
        monkeypatch.setattr(f"rewardloop_server.{user}.ort", runtime)
    return runtime
