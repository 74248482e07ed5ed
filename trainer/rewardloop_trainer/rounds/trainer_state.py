"""Where the trainer is: what each model has learned and how far its present round has come.

The file is replaced atomically, so a killed trainer finds the round that it was in, with the same data range, seed
and candidate, and goes on from its last finished phase.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.vocabulary import PHASES, Phase

FORMAT_VERSION = 1


class CorruptState(Exception):
    """The state file cannot be read. It is left as it is, for a person to look at."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """One attempt to make a better version.

    ``after_stream_id``: the last id that its parent's data reached ("" for none): later rows are new to it.
    ``until_stream_id``: it learns from the ledger up to and including this id. ``signals``: rows up to there.
    ``parent``: the live version it starts from. ``version``: what it was published as. ``failures``: how often
    it raised. ``starts``: processes that began to work on its present phase and did not come back from it, the
    one that does so now included. ``metrics``: figures of training and gate.
    """

    number: int
    phase: Phase
    after_stream_id: str
    until_stream_id: str
    signals: int
    new_signals: int
    seed: int
    parent: str | None = None
    version: str | None = None
    failures: int = 0
    starts: int = 0
    started_at: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelState:
    """``learned_through``: last stream id that a finished round saw, whatever its outcome; "" for none.

    ``rounds``: finished rounds. ``ended_at``: Unix seconds of the last one's end, 0 for none.
    """

    learned_through: str = ""
    rounds: int = 0
    ended_at: float = 0.0
    round: RoundState | None = None

    def finished(self, ended_at: float) -> ModelState:
        """After the present round, however it ended."""
        if self.round is None:
            raise ValueError("no round is under way")
        return ModelState(self.round.until_stream_id, self.rounds + 1, ended_at, None)


@dataclass(frozen=True, slots=True)
class TrainerState:
    """``trainer_id`` tells this work directory's rounds from another's in a shared store."""

    trainer_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    models: Mapping[str, ModelState] = field(default_factory=dict)

    def of(self, model: str) -> ModelState:
        return self.models.get(model, ModelState())

    def with_model(self, model: str, state: ModelState) -> TrainerState:
        return replace(self, models={**self.models, model: state})

    def round_key(self, model: str, number: int) -> str:
        """What a published version's ``notes["round"]`` says."""
        return f"{self.trainer_id}/{model}/{number}"


class StateFile:
    """Reads and atomically replaces ``<work_dir>/state.json``."""

    def __init__(self, work_dir: Path, fence: Fence | None = None) -> None:
        self.path = work_dir / "state.json"
        self._fence = fence

    def read(self) -> TrainerState:
        """A fresh state when there is no file. Raises `CorruptState`."""
        try:
            raw = json.loads(self.path.read_text())
            if raw["format_version"] != FORMAT_VERSION:
                raise CorruptState(f"{self.path}: format version {raw['format_version']!r} is not {FORMAT_VERSION}")
            return TrainerState(raw["trainer_id"], {name: _model(m) for name, m in raw["models"].items()})
        except FileNotFoundError:
            return TrainerState()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptState(f"{self.path}: {error!r}") from error

    def write(self, state: TrainerState) -> None:
        """Returns once the new state is on disk. Raises `Fenced` when another trainer leads."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A file of each leader's own: one that was stopped while it wrote may write on.
        temporary = self.path.with_suffix(f".writing-{self._fence.epoch}" if self._fence else ".writing")
        with temporary.open("w") as file:
            json.dump({"format_version": FORMAT_VERSION, **asdict(state)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        with nullcontext() if self._fence is None else self._fence.held():
            os.replace(temporary, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _model(raw: Mapping[str, Any]) -> ModelState:
    now = raw["round"]
    if now is not None and now["phase"] not in PHASES:
        raise CorruptState(f"unknown phase {now['phase']!r}")
    return ModelState(**{**raw, "round": None if now is None else RoundState(**now)})
