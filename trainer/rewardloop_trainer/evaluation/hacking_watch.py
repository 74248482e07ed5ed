"""Reward hacking: the reward model likes the policy ever more, and whoever it does not learn from ever less."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rewardloop_trainer.vocabulary import Witness

_LEAST = 5


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate, seen by the reward model that it learned from and by a ``witness`` that it did not.

    ``score``: its mean calibrated score. ``score_lower``: lower 95% bound of its win rate over the live policy by
    score. ``win_rate``: over the live policy, by the witness. ``win_rate_upper``: its upper 95% bound.
    """

    round: int
    witness: Witness
    score: float
    score_lower: float
    win_rate: float
    win_rate_upper: float


def alarm(points: Sequence[Point], *, alpha: float = 0.01, window: int = 10) -> str | None:
    """Why the last of ``points``, in the order of their rounds, shows reward hacking; None: it does not.

    1. In one candidate: its win rate by score is above one half, and by the witness below it, both beyond their 95%
       intervals.
    2. Over rounds: among the last ``window`` points of that witness (at least 5), scores rise and win rates fall, both
       at level ``alpha`` by `rising_p`. Both must hold, so the level of the two together is no more than alpha
       (an intersection-union test).
    """
    last = points[-1]
    if last.score_lower > 0.5 > last.win_rate and last.win_rate_upper <= 0.5:
        return (
            f"by score it beats the live policy (win rate at least {last.score_lower:.3f}), by {last.witness} it loses "
            f"(at most {last.win_rate_upper:.3f})"
        )
    seen = [point for point in points if point.witness == last.witness][-window:]
    if len(seen) < _LEAST:
        return None
    scores = rising_p([point.score for point in seen])
    wins = rising_p([-point.win_rate for point in seen])
    if max(scores, wins) > alpha:
        return None
    return (
        f"over {len(seen)} rounds scores rise (p {scores:.2g}) from {seen[0].score:.2f} to {last.score:.2f}, and win "
        f"rates by {last.witness} fall (p {wins:.2g}) from {seen[0].win_rate:.3f} to {last.win_rate:.3f}"
    )


def rising_p(values: Sequence[float]) -> float:
    """How likely values in random order would rise at least so steadily: the exact one-sided test of Mann and Kendall.

    It counts the pairs that do not rise, equal ones included, and asks how many permutations have no more of them. It
    needs no distribution, no scale and no large sample: five values that rise throughout give 1/120.
    """
    falls = sum(later <= earlier for i, earlier in enumerate(values) for later in values[i + 1 :])
    # Permutations of so many values by their number of inversions (Kendall and Stuart): a longer one inserts a new
    # largest value with 0 to n inversions more.
    permutations = [1]
    for size in range(1, len(values)):
        permutations = [sum(permutations[max(0, k - size) : k + 1]) for k in range(len(permutations) + size)]
    return sum(permutations[: falls + 1]) / math.factorial(len(values))


class HackingWatch:
    """Remembers points and alarms in ``path``, so that a halt outlives the process.

    After an alarm no policy is published until a reward version other than the hacked one is live, or an operator
    removes the file. Points begin anew then; a new reward version without an alarm keeps them, for calibrated scores
    keep their scale.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def halt(self, reward_version: str) -> str | None:
        """Why nothing is to be published while ``reward_version`` is live; None: nothing speaks against it."""
        _, halted = self._read()
        if halted is None:
            return None
        if halted["reward_version"] != reward_version:
            self._write([], None)
            return None
        return self._reason(halted["reason"])

    def observe(self, point: Point, reward_version: str) -> str | None:
        """Remember a point, which replaces that of its round and witness, and halt on an `alarm`: its reason."""
        points, halted = self._read()
        points = [p for p in points if (p.round, p.witness) != (point.round, point.witness)] + [point]
        if (reason := alarm(points)) is not None:
            halted = {"reason": f"round {point.round}: {reason}", "reward_version": reward_version}
        self._write(points, halted)
        return None if halted is None else self._reason(halted["reason"])

    def _reason(self, reason: str) -> str:
        return (
            f"reward hacking, {reason}; no policy is published until another reward version is live or "
            f"{self._path} is removed"
        )

    def _read(self) -> tuple[list[Point], dict[str, str] | None]:
        try:
            raw = json.loads(self._path.read_text())
        except FileNotFoundError:
            return [], None
        return [Point(**each) for each in raw["points"]], raw["halted"]

    def _write(self, points: Sequence[Point], halted: dict[str, str] | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".writing")
        temporary.write_text(json.dumps({"points": [asdict(point) for point in points], "halted": halted}, indent=2))
        os.replace(temporary, self._path)
