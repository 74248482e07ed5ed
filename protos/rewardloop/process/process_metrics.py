"""The metrics of a process itself: build, memory, CPU, garbage collection, and its GPUs if it has any."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


def report_process(registry: CollectorRegistry) -> None:
    """Register the metrics of the process in ``registry``."""
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    build = Info("rewardloop_build", "The installed version of rewardloop and of Python.", registry=registry)
    build.info({"version": _version(), "python": platform.python_version()})
    registry.register(GpuCollector())


class GpuCollector(Collector):
    """Reports memory and utilisation of each NVIDIA GPU that this process sees, whenever the page is read.

    There are no such series without the package nvidia-ml-py, a driver or a GPU.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._is_absent = False

    def describe(self) -> Iterable[GaugeMetricFamily]:
        labels = ("gpu", "name")
        return (
            GaugeMetricFamily("rewardloop_gpu_memory_used_bytes", "GPU memory in use, by any process.", labels=labels),
            GaugeMetricFamily("rewardloop_gpu_memory_total_bytes", "GPU memory that there is.", labels=labels),
            GaugeMetricFamily(
                "rewardloop_gpu_utilisation_ratio", "Share of the last sample in which a kernel ran.", labels=labels
            ),
        )

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if not self._open():
            return ()
        nvml = self._nvml
        used, total, utilisation = self.describe()
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                device = nvml.nvmlDeviceGetHandleByIndex(index)
                labels = (str(index), str(nvml.nvmlDeviceGetName(device)))
                memory = nvml.nvmlDeviceGetMemoryInfo(device)
                used.add_metric(labels, float(memory.used))
                total.add_metric(labels, float(memory.total))
                utilisation.add_metric(labels, nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
        except nvml.NVMLError:
            pass  # a slice of a GPU does not report everything: show what was read before the error
        return (family for family in (used, total, utilisation) if family.samples)

    def _open(self) -> bool:
        if self._nvml is None and not self._is_absent:
            try:
                import pynvml
            except ImportError:
                self._is_absent = True
                return False
            try:
                pynvml.nvmlInit()
                self._nvml = pynvml
            except pynvml.NVMLError:
                self._is_absent = True
        return not self._is_absent


def _version() -> str:
    try:
        return metadata.version("rewardloop")
    except metadata.PackageNotFoundError:
        return "unknown"
