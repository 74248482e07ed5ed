"""run: executes an ONNX reward model on its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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

# What ONNX Runtime's allocators, cudaMalloc, cuBLAS, cuDNN and C++ say. There is no error class for it.
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "status_alloc_failed", "bad_alloc", "bad allocation")


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


class EngineBroken(Exception):
    """Raised when a version that ran when it was warmed runs nothing any more. Only a new process can help.

    After some errors, as that of an illegal address, CUDA fails every later call of the process.
    """


class Overrun(Exception):
    """Raised for a run that did not end in time. Its request must not be tried again, on this replica or another."""


class RewardModel:
    """One loaded, warm version. It may be used from several threads.

    Args:
        manifest: The version's manifest.
        encoder: Turns texts into its tokens.
        sessions: The sessions that it runs on, of each place of its device.
        signature: What inputs the graph takes.
        cost: How long its runs take.
        adapter: The version's adapter, if it is a delta.
        on_close: Called when the version is closed.
        shapes: Which runs suit its device.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Encoder,
        sessions: Sequence[Sessions],
        signature: Signature,
        cost: CostModel,
        adapter: Adapter | None = None,
        on_close: Callable[[], None] = lambda: None,
        shapes: Shapes = ANY_SHAPE,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.calibration = manifest.calibration or Calibration()
        self.cost = cost
        self.signature = signature
        self._shapes = shapes
        self._sessions = sessions
        self._adapter = adapter
        self._on_close = on_close
        self._is_closed = False

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places where it runs: the CPU, or each GPU."""
        return tuple(each.place for each in self._sessions)

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
        signature = self.signature
        return plan_runs(
            rows,
            self.cost,
            trees=signature.is_decoder,
            shares=signature.shares_prompts,
            limit=limit,
            shapes=self._shapes,
        )

    def lay_out(self, rows: Sequence[Encoded], run: Run) -> Feeds:
        """Return the input of one of the runs that `plan` gave for the rows."""
        return lay_out(rows, run, self.signature, self.encoder.format.pad)

    def options(self) -> Any:
        """Return ONNX Runtime's options of one run. Setting their ``terminate`` from another thread stops the run."""
        options = ort.RunOptions()
        if self._adapter is not None:
            self._adapter.prepare(options)
        return options

    def execute(self, feeds: Feeds, *, place: int = 0, alone: bool = True, options: Any = None) -> Floats:
        """Run the graph and return raw logits, (rows, heads), in the order of the run's rows.

        Args:
            feeds: The run's input.
            place: Where to run it, as an index into `places`.
            alone: Nothing else needs that place, so that the run may have all of its threads.
            options: Those of `options`, for a caller that may stop the run.

        Raises:
            UnusableLogits: A logit is not finite, or the graph gives logits of another shape.
            OutOfMemory: The device has too little memory for this run.
            Exception: ONNX Runtime raises errors of several classes of its own.
        """
        options = self.options() if options is None else options
        sessions = self._sessions[place]
        session = sessions.alone if alone else sessions.beside
        try:
            inputs = self.signature.given(feeds)
            logits: Floats = (
                session.run(["logits"], inputs, options)[0]
                if self._adapter is None
                else self._adapter.run(session, inputs, options, place)
            )
        except Exception as error:
            if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
                raise OutOfMemory(str(error)) from error
            raise
        if logits.shape != (feeds.rows, self.manifest.heads):
            raise UnusableLogits(f"it gives logits of shape {logits.shape}, not {(feeds.rows, self.manifest.heads)}")
        if not np.isfinite(logits).all():
            raise UnusableLogits("it gives logits that are not finite")
        return logits

    def works(self, *, place: int = 0, alone: bool = True, options: Any = None) -> bool:
        """Run a few padding tokens, which ran when the version was warmed, and return whether that still succeeds."""
        row = Encoded([self.encoder.format.pad] * min(8, self.manifest.max_length), None, truncated=False)
        try:
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
        """Let go of the adapter and of the sessions, which are freed with the last version over them. Called once."""
        self._is_closed = True
        del self._sessions, self._adapter
        self._on_close()
