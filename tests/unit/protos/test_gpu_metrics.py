"""What is shown of GPUs, by a stand-in for NVIDIA's library: machines that run the tests have none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from rewardloop.process.process_metrics import GpuCollector


class NVMLError(Exception):
    pass


def nvml(*, devices: int, has_driver: bool = True) -> SimpleNamespace:
    """The last of ``devices`` tells only its memory, as a slice of a GPU does."""

    def init() -> None:
        if not has_driver:
            raise NVMLError("driver not loaded")

    def utilisation(index: int) -> SimpleNamespace:
        if index == devices - 1:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=42)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: devices,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: f"GPU of test {index}",
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(used=1000 + index, total=4000),
        nvmlDeviceGetUtilizationRates=utilisation,
    )


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    return registry


def test_each_gpu_has_its_series(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(devices=2))
    first, second = ({"gpu": str(i), "name": f"GPU of test {i}"} for i in range(2))
    assert registry.get_sample_value("rewardloop_gpu_memory_used_bytes", first) == 1000
    assert registry.get_sample_value("rewardloop_gpu_memory_total_bytes", second) == 4000
    assert registry.get_sample_value("rewardloop_gpu_utilisation_ratio", first) == 0.42
    assert registry.get_sample_value("rewardloop_gpu_utilisation_ratio", second) is None


@pytest.mark.parametrize("library", [None, nvml(devices=0), nvml(devices=1, has_driver=False)])
def test_without_library_driver_or_gpu_there_are_none(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)  # None: as if it were not installed
    assert list(registry.collect()) == []
    assert list(registry.collect()) == []
