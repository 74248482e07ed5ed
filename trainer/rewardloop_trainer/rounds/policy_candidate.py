"""A policy between its training and its gate: the files of what a round trained, and what is to be said of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewardloop_trainer.learning.run_report import RunReport
from rewardloop_trainer.learning.run_rows import last_means, read_steps
from rewardloop_trainer.policy.learn import Trained
from rewardloop_trainer.rounds.judges.earlier_judge import TAUGHT_BY

_FIGURES, _METHOD, _TAKEN_BACK = "figures.json", "method", "taken_back"


@dataclass(frozen=True, slots=True)
class PolicyCandidate:
    """What a round keeps beside the version that it trained.

    Attributes:
        directory: The round's directory.
        reports: The directory of the round's report, which stays after the round.
    """

    directory: Path
    reports: Path

    def write(self, method: str, trained: Trained, teachers: Collection[str]) -> None:
        """Write the method by which the policy learned, from what, its figures and, if its run ended early, why.

        Args:
            method: The algorithm as the manifest names it.
            trained: The run's result. A figure of it takes precedence over a mean of the last steps of the same name.
            teachers: The reward versions whose scores it learned from.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        figures = {**last_means(read_steps(self.reports)), **trained.figures}
        (self.directory / _FIGURES).write_text(json.dumps(figures))
        (self.directory / _METHOD).write_text(method)
        (self.directory / TAUGHT_BY).write_text(", ".join(sorted(teachers)))
        if trained.taken_back:
            (self.directory / _TAKEN_BACK).write_text(trained.taken_back)
            RunReport(self.reports).note(trained.taken_back)

    def figures(self) -> Mapping[str, float]:
        """Return the figures of training."""
        found: dict[str, float] = json.loads((self.directory / _FIGURES).read_text())
        return found

    def notes(self, otherwise: str) -> Mapping[str, str]:
        """Return what a manifest says of the training.

        Args:
            otherwise: The method of a round that an older trainer began, which wrote none.
        """
        notes = {"method": self._read(_METHOD) or otherwise}
        return notes | {name: said for name in (_TAKEN_BACK, TAUGHT_BY) if (said := self._read(name))}

    def _read(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""
