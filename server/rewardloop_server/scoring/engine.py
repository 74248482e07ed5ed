"""run: executes a reward model: an ONNX graph on this process's device, or what else a `Runner` reaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog

from rewardloop.formats.store import Calibration, Manifest
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_server.scoring.adapter import Adapter
from rewardloop_server.scoring.cost import CostModel
from rewardloop_server.scoring.layout import Feeds, Signature, lay_out
from rewardloop_server.scoring.plan import ANY_SHAPE, Limit, Run, Shapes, plan_runs

log = structlog.get_logger()

Floats = npt.NDArray[np.float32]

# What the allocators of ONNX Runtime and torch, cudaMalloc, cuBLAS, cuDNN and C++ say. Most have no class for it.
_OUT_OF_MEMORY = (
    *("failed to allocate memory", "out of memory", "status_alloc_failed", "bad_alloc", "bad allocation"),
    *("not enough memory", "can't allocate memory"),
)


@dataclass(frozen=True, slots=True)
class Sessions:
    """The ONNX Runtime sessions of one graph at one place: the CPU, or one GPU. They may be the same session.

    Attributes:
        place: The place's name, such as ``cuda:1``.
        alone: For a run that has the place to itself.
        beside: For one of several runs at once, on its share of the threads.
    """

    place: str
    alone: Any
    beside: Any


class UnusableLogits(Exception):
    """Raised when a run gives logits that are not finite, or that are not one line of heads for each row."""


class OutOfMemory(Exception):
    """Raised when the device has too little memory for a run. A run of fewer tokens may have enough."""


def lacks_memory(error: Exception) -> bool:
    """Return whether an engine says with this error that its device has too little memory."""
    return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


class EngineBroken(Exception):
    """Raised when a version that ran when it was warmed runs nothing any more. Only a new process can help.

    After some errors, as that of an illegal address, CUDA fails every later call of the process.
    """


class EngineAway(Exception):
    """Raised when the server that runs a version does not answer, or gives other logits than it proved to give.

    Another replica may answer the request.
    """


class Overrun(Exception):
    """Raised for a run that did not end in time. Its request must not be tried again, on this replica or another."""


class Runner(Protocol):
    """Runs one version: its graph or its torch model in this process, or a server elsewhere. Threads may share it.

    Attributes:
        signature: What inputs it takes.
        is_elsewhere: A server runs the version, which may be away and come back, and what else it runs goes on. If
            nothing runs any more on a device of this process, a new process is needed.
        is_away: No server of the version is there at present. A device of this process always is.
        places: The names of the places where it runs: the CPU, each GPU, or elsewhere.
    """

    @property
    def signature(self) -> Signature: ...

    @property
    def is_elsewhere(self) -> bool: ...

    @property
    def is_away(self) -> bool: ...

    @property
    def places(self) -> tuple[str, ...]: ...

    def plan(self, rows: Sequence[Encoded], cost: CostModel, limit: Limit) -> list[Run]:
        """Return the cheapest runs of the rows. The first run holds row 0."""

    def lay_out(self, rows: Sequence[Encoded], run: Run, pad: int) -> Feeds:
        """Return the input of one of the runs that `plan` gave. ``pad`` is the id of the padding token."""

    def options(self) -> Any:
        """Return the options of one run. Setting their ``terminate`` from another thread stops the run."""

    def persist(self, options: Any) -> None:
        """Let a run with these options wait for a server that is lost; else such a run fails at once."""

    def logits(self, feeds: Feeds, options: Any, *, place: int, alone: bool) -> Floats:
        """Run at a place, and return raw logits, (rows, heads). `RewardModel.execute` says what is raised."""

    def close(self) -> None:
        """Let go of what it holds. Called once, after which it has no options."""


class GraphRunner:
    """Runs an ONNX graph in this process.

    Args:
        sessions: The sessions that it runs on, of each place of its device.
        signature: What inputs the graph takes.
        adapter: The version's adapter, if it is a delta.
        shapes: Which runs suit its device.
    """

    is_elsewhere = False
    is_away = False

    def __init__(
        self,
        sessions: Sequence[Sessions],
        signature: Signature,
        adapter: Adapter | None = None,
        shapes: Shapes = ANY_SHAPE,
    ) -> None:
        self.signature = signature
        self._sessions = sessions
        self._adapter = adapter
        self._shapes = shapes

    def plan(self, rows: Sequence[Encoded], cost: CostModel, limit: Limit) -> list[Run]:
        """Plan for what the graph takes and the device runs fast; as of `Runner`."""
        signature = self.signature
        return plan_runs(
            rows,
            cost,
            trees=signature.is_decoder,
            shares=signature.shares_prompts,
            limit=limit,
            shapes=self._shapes,
        )

    def lay_out(self, rows: Sequence[Encoded], run: Run, pad: int) -> Feeds:
        """Return the graph's arrays; as of `Runner`."""
        return lay_out(rows, run, self.signature, pad)

    def options(self) -> Any:
        """Return ONNX Runtime's options of one run; as of `Runner`."""
        options = ort.RunOptions()
        if self._adapter is not None:
            self._adapter.prepare(options)
        return options

    def persist(self, options: Any) -> None:
        """Do nothing: a device is always there."""

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places; as of `Runner`."""
        return tuple(each.place for each in self._sessions)

    def logits(self, feeds: Feeds, options: Any, *, place: int, alone: bool) -> Floats:
        """Run the graph; as of `Runner`."""
        sessions = self._sessions[place]
        session = sessions.alone if alone else sessions.beside
        inputs = self.signature.given(feeds)
        try:
            logits: Floats = (
                session.run(["logits"], inputs, options)[0]
                if self._adapter is None
                else self._adapter.run(session, inputs, options, place)
            )
        except Exception as error:
            if lacks_memory(error):
                raise OutOfMemory(str(error)) from error
            raise
        return logits

    def close(self) -> None:
        """Let go of the adapter and of the sessions, which are freed with the last version over them."""
        del self._sessions, self._adapter


class RewardModel:
    """One loaded, warm version. It may be used from several threads.

    Args:
        manifest: The version's manifest.
        encoder: Turns texts into its tokens.
        runner: Runs it.
        cost: How long its runs take.
        on_close: Called when the version is closed.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Encoder,
        runner: Runner,
        cost: CostModel,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.calibration = manifest.calibration or Calibration()
        self.cost = cost
        self.signature = runner.signature
        self.is_elsewhere = runner.is_elsewhere
        self._runner = runner
        self._on_close = on_close
        self._is_closed = False

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places where it runs: the CPU, each GPU, or elsewhere."""
        return self._runner.places

    @property
    def is_away(self) -> bool:
        """Whether no server that runs it is there at present."""
        return self._runner.is_away

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called, after which nothing runs."""
        return self._is_closed

    def plan(self, rows: Sequence[Encoded], limit_s: float | None = None, limit_tokens: int | None = None) -> list[Run]:
        """Return the cheapest runs of the rows. The first run holds row 0.

        Args:
            rows: The sequences to run.
            limit_s: Most estimated seconds of a run that has more than one row; None for no limit.
            limit_tokens: Most tokens of such a run, padding included; None for no limit.
        """
        limit = Limit(math.inf if limit_s is None else limit_s, math.inf if limit_tokens is None else limit_tokens)
        return self._runner.plan(rows, self.cost, limit)

    def lay_out(self, rows: Sequence[Encoded], run: Run) -> Feeds:
        """Return the input of one of the runs that `plan` gave for the rows."""
        return self._runner.lay_out(rows, run, self.encoder.format.pad)

    def options(self) -> Any:
        """Return the options of one run. Setting their ``terminate`` from another thread stops the run."""
        return self._runner.options()

    def execute(self, feeds: Feeds, *, place: int = 0, alone: bool = True, options: Any = None) -> Floats:
        """Run the version and return raw logits, (rows, heads), in the order of the run's rows.

        Args:
            feeds: The run's input.
            place: Where to run it, as an index into `places`.
            alone: Nothing else needs that place, so that the run may have all of its threads.
            options: Those of `options`, for a caller that may stop the run.

        Raises:
            UnusableLogits: A logit is not finite, or they have another shape.
            OutOfMemory: The device has too little memory for this run.
            EngineAway: The server that runs the version does not answer.
            Exception: ONNX Runtime raises errors of several classes of its own.
        """
        options = self.options() if options is None else options
        logits = self._runner.logits(feeds, options, place=place, alone=alone)
        if logits.shape != (feeds.rows, self.manifest.heads):
            raise UnusableLogits(f"it gives logits of shape {logits.shape}, not {(feeds.rows, self.manifest.heads)}")
        if not np.isfinite(logits).all():
            raise UnusableLogits("it gives logits that are not finite")
        return logits

    def works(self, *, place: int = 0, alone: bool = True, options: Any = None) -> bool:
        """Run a few padding tokens, which ran when the version was warmed, and return whether that still succeeds."""
        row = Encoded([self.encoder.format.pad] * min(8, self.manifest.max_length), None, truncated=False)
        try:
            options = self.options() if options is None else options
            self._runner.persist(options)
            feeds = self.lay_out([row], Run(((0,),), len(row.ids), 0.0))
            self.execute(feeds, place=place, alone=alone, options=options)
        except Exception:  # the caller reports the error of the run for which it asks
            return False
        return True

    def run(self, rows: Sequence[Encoded]) -> tuple[Floats, int]:
        """Plan and run the rows at the first place.

        Returns raw logits, (rows, heads), in the order of the rows, and the tokens run with padding.
        """
        logits = np.empty((len(rows), self.manifest.heads), dtype=np.float32)
        for run in (runs := self.plan(rows)):
            logits[list(run.rows)] = self.execute(self.lay_out(rows, run))
        return logits, sum(run.tokens for run in runs)

    def close(self) -> None:
        """Let go of what runs the version. Called once."""
        self._is_closed = True
        self._runner.close()
        self._on_close()
