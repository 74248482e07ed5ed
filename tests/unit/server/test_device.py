"""Where the reward model runs."""

from __future__ import annotations

from typing import Literal

import onnxruntime as ort
import pytest

from rewardloop_server.scoring.engine import choose_device


def test_auto_takes_what_this_onnxruntime_has() -> None:
    device = choose_device("auto", threads=1, spin=False)
    assert device.providers[0] in ort.get_available_providers()
    assert device.kind == ("cuda" if "CUDAExecutionProvider" in ort.get_available_providers() else "cpu")


@pytest.mark.parametrize(
    ("threads", "streams", "expected"), [(1, 0, 1), (2, 0, 2), (8, 0, 2), (8, 4, 4), (2, 4, 2), (4, 1, 1)]
)
def test_a_cpu_has_two_streams_where_it_has_two_threads(threads: int, streams: int, expected: int) -> None:
    assert choose_device("cpu", threads=threads, spin=False, streams=streams).streams == expected


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_device_that_is_absent_is_refused_with_what_there_is(kind: Literal["cuda", "tensorrt"]) -> None:
    provider = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[kind]
    if provider in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(RuntimeError, match=f"device is {kind}, but this ONNX Runtime has only .*CPUExecutionProvider"):
        choose_device(kind, threads=1, spin=False)
