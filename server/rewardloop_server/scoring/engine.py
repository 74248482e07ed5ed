"""run: an ONNX reward model on its device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog

from rewardloop.formats.store import Calibration, Manifest
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.devices import PROVIDERS, DeviceKind, WantedDevice
from rewardloop_server.scoring.layout import Feeds, Signature, lay_out
from rewardloop_server.scoring.plan import Limit, Run, plan_runs

log = structlog.get_logger()

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Device:
    """Where sessions run. ``threads``: of a run that has the device to itself. ``streams``: most runs at once."""

    kind: DeviceKind
    threads: int
    spin: bool
    streams: int = 1

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers of ONNX Runtime, most wanted first."""
        return PROVIDERS[self.kind]


@dataclass(frozen=True, slots=True)
class Sessions:
    """One graph, opened for a run that has the device to itself (``alone``) and for one of several at once (``beside``,
    on its share of the threads). The same session where the device has one stream."""

    alone: Any
    beside: Any


def choose_device(wanted: WantedDevice, *, threads: int, spin: bool, streams: int = 1) -> Device:
    """CUDA where ONNX Runtime has it, unless the setting says otherwise; says in the log what it chose.

    ``threads`` 0: one a core. ``streams`` 0: two on a CPU with two threads or more, else one.

    Raises RuntimeError when a device is demanded that this ONNX Runtime lacks.
    """
    available = ort.get_available_providers()
    kind: DeviceKind = wanted if wanted != "auto" else "cuda" if PROVIDERS["cuda"][0] in available else "cpu"
    if PROVIDERS[kind][0] not in available:
        raise RuntimeError(
            f"device is {kind}, but this ONNX Runtime has only {', '.join(available)}: install rewardloop[gpu]"
        )
    if kind == "cpu":
        threads = threads or _cores()
        streams = min(streams or 2, threads)
    streams = streams or 1
    log.info(
        "device chosen",
        device=kind,
        wanted=wanted,
        threads=threads,
        streams=streams,
        providers=available,
        onnxruntime=ort.__version__,
    )
    return Device(kind, threads, spin, streams)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RewardModel:
    """One loaded, warm version: its text encoder, its calibration, and the sessions and adapter that it runs on.

    May be used from several threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Encoder,
        sessions: Sessions,
        signature: Signature,
        cost: CostModel,
        adapter: Any = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.calibration = manifest.calibration or Calibration()
        self.cost = cost
        self.signature = signature
        self._sessions = sessions
        # Held for as long as the version lives: ONNX Runtime scores with the graph's default weights, and says
        # nothing, once Python has let go of an active adapter.
        self._adapter = adapter
        self._on_close = on_close

    def plan(self, rows: Sequence[Encoded], limit_s: float | None = None, limit_tokens: int | None = None) -> list[Run]:
        """The cheapest runs of the rows, each within the limits where it has more than one row; the first holds row 0.

        ``limit_s``: seconds of a run by the cost model. ``limit_tokens``: its tokens, padding included.
        """
        limit = Limit(math.inf if limit_s is None else limit_s, math.inf if limit_tokens is None else limit_tokens)
        return plan_runs(rows, self.cost, trees=self.signature.is_decoder, limit=limit)

    def lay_out(self, rows: Sequence[Encoded], run: Run) -> Feeds:
        """The input of one of the runs that ``plan`` gave for ``rows``."""
        return lay_out(rows, run, self.signature, self.encoder.format.pad)

    def execute(self, feeds: Feeds, *, alone: bool = True) -> Floats:
        """Raw logits (rows, heads), in the order of the run's rows. ``alone``: no other run needs the device."""
        options = None
        if self._adapter is not None:
            # Never through an IOBinding, which ignores active adapters without an error.
            options = ort.RunOptions()
            options.add_active_adapter(self._adapter)
        session = self._sessions.alone if alone else self._sessions.beside
        logits: Floats = session.run(["logits"], feeds.inputs, options)[0]
        return logits

    def run(self, rows: Sequence[Encoded]) -> tuple[Floats, int]:
        """Raw logits (len(rows), heads) in the rows' order, and how many padded tokens were run."""
        logits = np.empty((len(rows), self.manifest.heads), dtype=np.float32)
        for run in (runs := self.plan(rows)):
            logits[list(run.rows)] = self.execute(self.lay_out(rows, run))
        return logits, sum(run.tokens for run in runs)

    def close(self) -> None:
        """Let go of the session, which is freed with the last version over it, and of the adapter. Called once."""
        del self._sessions, self._adapter
        self._on_close()
