"""Where the reward model runs."""

from __future__ import annotations

from typing import Literal

import onnxruntime as ort
import pytest

from rewardloop_server.engine import choose_device


def test_auto_takes_what_this_onnxruntime_has() -> None:
    device = choose_device("auto", threads=1, spin=False)
    assert device.providers[0] in ort.get_available_providers()
    assert device.kind == ("cuda" if "CUDAExecutionProvider" in ort.get_available_providers() else "cpu")


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_device_that_is_absent_is_refused_with_what_there_is(kind: Literal["cuda", "tensorrt"]) -> None:
    provider = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[kind]
    if provider in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with pytest.raises(RuntimeError, match=f"device is {kind}, but this ONNX Runtime has only .*CPUExecutionProvider"):
        choose_device(kind, threads=1, spin=False)
