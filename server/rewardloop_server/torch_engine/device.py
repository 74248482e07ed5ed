"""Chooses the device of the torch engine, and shows that torch really runs on it."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch

from rewardloop_server.device.choose import Device, of_cpu
from rewardloop_server.device.kinds import TORCH_DEVICES, DeviceKind, WantedDevice

log = structlog.get_logger()


def choose_torch_device(
    wanted: WantedDevice,
    *,
    threads: int,
    streams: int = 1,
    memory_gb: float = 0.0,
    tf32: bool = False,
    device_ids: Sequence[int] = (0,),
) -> Device:
    """Choose the device, compute something on each of its GPUs, set torch up for it, and log the choice.

    Args:
        wanted: The kind of device. "auto" is CUDA if torch sees a GPU, else the CPU.
        threads: Threads of a run that has the CPU to itself; 0 for one a core.
        streams: Most runs at once on the CPU or on each GPU; 0 for two on a CPU with two threads or more, else one.
        memory_gb: Most gigabytes of each GPU that this process may hold; 0 for no bound.
        tf32: Products of float32 matrices on a GPU may round their factors to TF32.
        device_ids: Which of the GPUs that CUDA shows to this process, each once; without effect on a CPU.

    Raises:
        RuntimeError: torch does not see the wanted device, or cannot compute on it.
    """
    if wanted not in ("auto", *TORCH_DEVICES):
        raise RuntimeError(f"device is {wanted}, which runs graphs: --engine onnx")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind: DeviceKind = "cuda" if wanted == "cuda" or (wanted == "auto" and there) else "cpu"
    if kind == "cuda":
        if missing := [number for number in device_ids if number >= there]:
            raise RuntimeError(f"device is cuda:{missing[0]}, but torch {torch.__version__} sees {there} GPUs")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for number in device_ids:
            _try(number, memory_gb)
    else:
        (threads, streams), device_ids = of_cpu(threads, streams), (0,)
    device = Device(kind, threads, False, streams or 1, memory_gb, tf32, False, tuple(device_ids))
    log.info(
        "device chosen",
        engine="torch",
        device=", ".join(device.names),
        wanted=wanted,
        threads=threads,
        streams=device.streams,
        torch=torch.__version__,
    )
    return device


def torch_devices(device: Device) -> list[torch.device]:
    """Return torch's own names of the device's places."""
    return [torch.device("cpu")] if device.kind == "cpu" else [torch.device("cuda", i) for i in device.device_ids]


def _try(number: int, memory_gb: float) -> None:
    """Compute on a GPU, with its bound of memory. Raises RuntimeError."""
    place = torch.device("cuda", number)
    try:
        if memory_gb:
            whole = torch.cuda.get_device_properties(place).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / whole), place)
        float(torch.ones(8, 8, device=place).sum())
    except Exception as error:  # CUDA's errors have several classes
        raise RuntimeError(f"device is cuda:{number}, but torch cannot compute on it: {error}") from error
