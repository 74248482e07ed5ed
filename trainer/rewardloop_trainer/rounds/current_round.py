"""A round's hold on its place in the state file, and the ways in which it leaves the loop."""

from __future__ import annotations

from dataclasses import replace

from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.rounds.round_state import Round, StateFile
from rewardloop_trainer.vocabulary import ModelName


class ServerAway(Exception):
    """The server did not promote the version now; the same call may succeed later."""


class Interrupted(Exception):
    """The process was asked to stop: the round has saved itself and goes on at the next start."""


class Waiting(Exception):
    """The round waits for people, and is to be looked at again after ``seconds``; no failure."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"look again in {seconds:g} s")
        self.seconds = seconds


class RoundTrack:
    """A round's hold on its own place in the state file; each `reach` is on disk when it returns."""

    def __init__(self, model: ModelName, file: StateFile, metrics: TrainerMetrics) -> None:
        self.model = model
        self._file = file
        self._metrics = metrics

    @property
    def now(self) -> Round:
        """Raises ValueError when no round is under way."""
        current = self._file.read().of(self.model).round
        if current is None:
            raise ValueError(f"no round of {self.model} is under way")
        return current

    @property
    def key(self) -> str:
        """Names this round in the notes of what it publishes."""
        return self._file.read().round_key(self.model, self.now.number)

    def reach(self, changed: Round) -> None:
        """Replace the round's record, its phase above all."""
        state = self._file.read()
        before = state.of(self.model).round
        if before is not None and before.starts and before.phase != changed.phase:
            changed = replace(changed, starts=1)  # this process has begun the next phase
        self._file.write(state.with_model(self.model, replace(state.of(self.model), round=changed)))
        self._metrics.in_phase(self.model, changed.phase)
