"""Reads the trainer's work directory: the rounds that led to no version, and its judge of policies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rewardloop_demo.record import FruitlessRound, PolicyJudge


class TrainerNotes:
    """Reads the trainer's notes. The trainer deletes old ones, so that `look` has to be called while it works.

    Attributes:
        fruitless: The rounds that led to no version, as far as they were seen, in their order.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._seen: set[tuple[str, str]] = set()
        self.fruitless: list[FruitlessRound] = []

    def look(self, seconds: float, signals: int) -> bool:
        """Take note of the rounds that have ended since the last call.

        Args:
            seconds: Time since the demo's start.
            signals: Signals recorded so far.

        Returns:
            Whether there were any.
        """
        before = len(self.fruitless)
        for outcome, notes in (("refused", "reasons.json"), ("failed", "error.txt")):
            for path in sorted(self._work_dir.glob(f"{outcome}/*/{notes}")):
                model, _, number = path.parent.name.rpartition("-")
                if (outcome, path.parent.name) in self._seen:
                    continue
                with suppress(FileNotFoundError):  # the trainer has deleted it meanwhile
                    reasons = _reasons(path)
                    self._seen.add((outcome, path.parent.name))
                    self.fruitless.append(FruitlessRound(model, int(number), outcome, seconds, signals, reasons))
        return len(self.fruitless) > before

    def judge(self, metrics: Mapping[str, float]) -> PolicyJudge:
        """Return the judge of policies, from the judge that the trainer keeps and the last policy's manifest."""
        kept = self._work_dir / "judge" / "kept" / "about.json"
        if not kept.exists():
            return PolicyJudge(is_own=False)
        nan = math.nan
        accuracy, lower = (metrics.get(f"gate_judge_accuracy{end}", nan) for end in ("", "_lower"))
        return PolicyJudge(True, int(json.loads(kept.read_text())["learned"]), accuracy, lower)


def _reasons(path: Path) -> tuple[str, ...]:
    if path.suffix == ".json":
        return tuple(str(reason) for reason in json.loads(path.read_text())["reasons"])
    return (path.read_text().partition("\n")[0],)
