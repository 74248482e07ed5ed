"""An ONNX Runtime as it is on a machine with GPUs. Its sessions say that they run where they were asked to, and run on
the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

_USERS = ("device.choose", "loading.opening", "loading.sessions", "scoring.adapter")


class GpuRuntime:
    """Stands in for the module onnxruntime.

    Attributes:
        asked: For each session that was opened the options of its providers, by their names.
        shapes: Rows and tokens of each run, in order.
        placed: Where the values of adapters were put: the memory's name and the device's id.
        has_libraries: CUDA's libraries were loaded, without which no session starts on a GPU.
    """

    __version__ = ort.__version__

    def __init__(self) -> None:
        self.asked: list[dict[str, dict[str, str]]] = []
        self.shapes: list[tuple[int, int]] = []
        self.placed: list[tuple[str, int]] = []
        self.has_libraries = False
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
        self.asked.append(dict(zip(providers, provider_options, strict=True)))
        taken = list(providers) if self.has_libraries else ["CPUExecutionProvider"]
        return _GpuSession(ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), taken, self.shapes)


class _GpuSession:
    def __init__(self, session: ort.InferenceSession, providers: list[str], shapes: list[tuple[int, int]]) -> None:
        self._session = session
        self._providers = providers
        self._shapes = shapes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, names: list[str], inputs: dict[str, npt.NDArray[Any]], options: Any = None) -> Any:
        rows, tokens = inputs["input_ids"].shape
        self._shapes.append((rows, tokens))
        return self._session.run(names, inputs, options)


class _Values:
    def __init__(self, runtime: GpuRuntime) -> None:
        self._runtime = runtime

    def ortvalue_from_numpy(self, array: npt.NDArray[np.float32], memory: str, device_id: int) -> ort.OrtValue:
        self._runtime.placed.append((memory, device_id))
        return ort.OrtValue.ortvalue_from_numpy(array)


def install(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    """Let the server use such a runtime."""
    runtime = GpuRuntime()
    for user in _USERS:
        monkeypatch.setattr(f"rewardloop_server.{user}.ort", runtime)
    return runtime
