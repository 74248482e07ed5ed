"""The round of a model that is under way, as the state file has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.reports.parts import Sample
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.trainer_state import RoundState, StateFile
from rewardloop_trainer.vocabulary import ModelName


class CurrentRound:
    """Reads and replaces the state of the round under way. A state that was reached is on disk when `reach` returns."""

    def __init__(self, model: ModelName, file: StateFile, metrics: TrainerMetrics, board: Board | None = None) -> None:
        self.model = model
        self.board = board or Board()
        self._file = file
        self._metrics = metrics

    @property
    def state(self) -> RoundState:
        """Raises ValueError when no round is under way."""
        current = self._file.read().of(self.model).round
        if current is None:
            raise ValueError(f"no round of {self.model} is under way")
        return current

    @property
    def key(self) -> str:
        """The name of this round in the notes of the version that it publishes."""
        return self._file.read().round_key(self.model, self.state.number)

    @property
    def fresh_until(self) -> str:
        """See `ModelState`."""
        return self._file.read().of(self.model).fresh_until

    def reach(self, changed: RoundState) -> None:
        """Replace the state of the round, which may be in another phase afterwards."""
        whole = self._file.read()
        before = whole.of(self.model).round
        if before is not None and before.starts and before.phase != changed.phase:
            changed = replace(changed, starts=1)  # this process has begun the next phase
        self._file.write(whole.with_model(self.model, replace(whole.of(self.model), round=changed)))
        self._metrics.in_phase(self.model, changed.phase)
        self.board.reached(self.model, changed)

    def stepped(self, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show a step of training to operators."""
        self.board.stepped(self.model, self.state.number, step, steps, figures)

    def refused(self, reasons: Sequence[object], examples: Sequence[Sample]) -> None:
        """Show operators why the candidate is refused."""
        self.board.refused(self.model, self.state.number, reasons, examples)
