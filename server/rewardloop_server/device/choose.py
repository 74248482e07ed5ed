"""Chooses the device of the reward model, and shows that ONNX Runtime really runs on it.

A device is the CPU, or one or several GPUs of a kind, each of which holds every version and runs whole runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from io import StringIO
from typing import Any

import onnxruntime as ort
import structlog

from rewardloop_server.device.kinds import PROVIDERS, AdapterUse, DeviceKind, WantedDevice, provider_options

log = structlog.get_logger()

_BUILDS = ("onnxruntime", "onnxruntime-gpu")

# A graph of one Identity, in ONNX's IR version 8 and opset 17. No provider lacks that.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001011"
)


@dataclass(frozen=True, slots=True)
class Device:
    """Where sessions run.

    Attributes:
        kind: The kind of device.
        threads: Threads of a run that has the device to itself.
        spin: Threads spin between runs instead of sleeping.
        streams: Most runs at once on the CPU, or on each of the GPUs.
        memory_gb: Most gigabytes of a GPU's memory that the runs of one session may hold; 0 for no bound.
        tf32: Products of float32 matrices on a GPU may round their factors to TF32, which has 10 bits.
        binds_adapters: Adapters lie on the device for as long as their versions are loaded, and are bound to each run.
        device_ids: Which of the GPUs that CUDA shows to this process. Each holds every version. A CPU has the id 0.
    """

    kind: DeviceKind
    threads: int
    spin: bool
    streams: int = 1
    memory_gb: float = 0.0
    tf32: bool = False
    binds_adapters: bool = False
    device_ids: tuple[int, ...] = (0,)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the CPU, or of each of the GPUs, such as ``cuda:1``."""
        return ("cpu",) if self.kind == "cpu" else tuple(f"{self.kind}:{number}" for number in self.device_ids)

    def each(self) -> tuple[Device, ...]:
        """Return a device for the CPU, or for each of the GPUs, in the order of `names`."""
        return tuple(replace(self, device_ids=(number,)) for number in self.device_ids)

    @property
    def memory(self) -> str:
        """ONNX Runtime's name of the memory in which the first of `providers` computes."""
        return "cpu" if self.kind == "cpu" else "cuda"

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers of ONNX Runtime, most wanted first."""
        return PROVIDERS[self.kind]

    @property
    def provider_options(self) -> list[dict[str, str]]:
        """The options of each provider, in the order of `providers`. Raises ValueError for several GPUs."""
        (device_id,) = self.device_ids
        return [provider_options(name, self.memory_gb, tf32=self.tf32, device_id=device_id) for name in self.providers]

    def refuses(self, precision: str) -> str | None:
        """Return why versions of this precision must not run on this device, or None if they may."""
        if precision != "int8" or self.kind == "cpu":
            return None
        return (
            f"its precision is int8, whose matrix products ONNX Runtime would run on the CPU beside {self.kind}: export"
            " it in float16, bfloat16 or float32"
        )

    def refusal(self, session: Any) -> str | None:
        """Return why a session does not run on this device, or None if it does.

        ONNX Runtime opens a session without a provider that it cannot start, and runs it on the CPU instead.
        """
        wanted, taken = self.providers[0], session.get_providers()
        if wanted in taken:
            return None
        name = ", ".join(self.names)
        return f"device is {name}, but ONNX Runtime could not start {wanted} and would run on {', '.join(taken)}"


def choose_device(
    wanted: WantedDevice,
    *,
    threads: int,
    spin: bool,
    streams: int = 1,
    memory_gb: float = 0.0,
    tf32: bool = False,
    adapters: AdapterUse = "auto",
    device_ids: Sequence[int] = (0,),
) -> Device:
    """Choose the device, open a session on each of its GPUs to see that they work, and log the choice.

    Args:
        wanted: The kind of device. "auto" is CUDA if this ONNX Runtime has it and can start it, else the CPU.
        threads: Threads of a run that has the device to itself; 0 for one a core.
        spin: Threads spin between runs.
        streams: Most runs at once on the CPU or on each GPU; 0 for two on a CPU with two threads or more, else one.
        memory_gb: As of `Device`.
        tf32: As of `Device`.
        adapters: How adapters reach a graph; "auto" binds them on a GPU, to which active ones are copied in each run.
        device_ids: As of `Device`, each once; without effect on a CPU.

    Raises:
        RuntimeError: This ONNX Runtime does not have the wanted device, or cannot start it. That holds for "auto" too
            if it can start some of the GPUs, because a server must not run on fewer than it was told.
    """
    available = ort.get_available_providers()
    kind: DeviceKind = wanted if wanted != "auto" else "cuda" if PROVIDERS["cuda"][0] in available else "cpu"
    if PROVIDERS[kind][0] not in available:
        raise RuntimeError(
            f"device is {kind}, but this ONNX Runtime has only {', '.join(available)}: {_remedy(installed_builds())}"
        )
    if kind != "cpu":
        tried = Device(kind, threads, spin, 1, memory_gb, tf32, False, tuple(device_ids)).each()
        refusals = [why for each in tried if (why := _trial(each)) is not None]
        if refusals and (wanted != "auto" or len(refusals) < len(tried)):
            remedy = "--device cpu runs there knowingly" if len(refusals) == len(tried) else "leave out its id"
            raise RuntimeError(f"{'; '.join(refusals)}: see its message above; {remedy}")
        if refusals:
            log.warning("the GPU cannot be used: scoring runs on the CPU", reason="; ".join(refusals))
            kind = "cpu"
    if kind == "cpu":
        (threads, streams), device_ids = of_cpu(threads, streams), (0,)
    binds = adapters == "bound" or (adapters == "auto" and kind != "cpu")
    device = Device(kind, threads, spin, streams or 1, memory_gb, tf32, binds, tuple(device_ids))
    log.info(
        "device chosen",
        engine="onnx",
        device=", ".join(device.names),
        wanted=wanted,
        threads=threads,
        streams=device.streams,
        providers=available,
        onnxruntime=ort.__version__,
    )
    return device


def installed_builds() -> set[str]:
    """Return which packages with the module onnxruntime are installed. Two of them overwrite each other's files."""
    return {name for name in _BUILDS if any(metadata.distributions(name=name))}


def _remedy(builds: set[str]) -> str:
    if len(builds) < 2:
        return "install rewardloop[gpu], and where the trainer runs too rewardloop[gpu,trainer-gpu]"
    both = " ".join(sorted(builds))
    return (
        f"{' and '.join(sorted(builds))} are both installed, and overwrite each other: pip uninstall -y {both}, and"
        " install rewardloop[gpu], or rewardloop[gpu,trainer-gpu] where the trainer runs too"
    )


def load_libraries(device: Device) -> None:
    """Load CUDA's libraries from the packages that bring them, or else from where the system looks for libraries.

    ONNX Runtime's provider does not look into the packages. A library that is missing is logged: without it the
    provider may not start, which `Device.refusal` tells. Call it before the first session of a process.
    """
    if device.kind == "cpu":
        return
    with redirect_stdout(StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        log.warning("libraries of CUDA could not be loaded", said=said.getvalue().strip())


def _trial(device: Device) -> str | None:
    """Return why no session runs on a device of one GPU, or None if one does."""
    try:
        load_libraries(device)
        session = ort.InferenceSession(
            _IDENTITY, providers=list(device.providers), provider_options=device.provider_options
        )
        return device.refusal(session)
    except Exception as error:  # ONNX Runtime raises bare Exceptions; which, depends on the provider
        return f"device is {', '.join(device.names)}, but ONNX Runtime cannot open a session on it: {error}"


def of_cpu(threads: int, streams: int) -> tuple[int, int]:
    """Return the threads and the runs at once of a CPU: what was asked for, by default one a core, and two runs."""
    threads = threads or _cores()
    return threads, min(streams or 2, threads)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
