"""Detects reward hacking: our reward rises while the preference of independent witnesses falls."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rewardloop_trainer.vocabulary import Witness

_LEAST_POINTS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate, as the reward model that trained it and a witness that did not train it see it.

    Attributes:
        round: The number of the candidate's round.
        witness: Who compared the candidate with the live policy.
        score: The candidate's mean calibrated score.
        score_lower: The lower 95% bound of its win rate over the live policy by score.
        win_rate: Its win rate over the live policy by the witness.
        win_rate_upper: The upper 95% bound of that win rate.
    """

    round: int
    witness: Witness
    score: float
    score_lower: float
    win_rate: float
    win_rate_upper: float


def alarm(points: Sequence[Point], *, alpha: float = 0.01, window: int = 10) -> str | None:
    """Return why the last point shows reward hacking, or None if it does not.

    There are two signs:

    1. In one candidate: its win rate by score is above one half and its win rate by the witness is below one half,
       both beyond their 95% intervals.
    2. Over rounds: among the last ``window`` points of the same witness (at least 5), scores rise and win rates fall,
       both at level ``alpha`` by `rising_p`. Because both must hold, the level of the two together is at most
       ``alpha`` (an intersection-union test).

    Args:
        points: The candidates seen so far, in the order of their rounds.
        alpha: The level of the second sign's tests.
        window: How many points the second sign looks at.
    """
    last = points[-1]
    if last.score_lower > 0.5 > last.win_rate and last.win_rate_upper <= 0.5:
        return (
            f"by score it beats the live policy (win rate at least {last.score_lower:.3f}), by {last.witness} it loses "
            f"(at most {last.win_rate_upper:.3f})"
        )
    seen = [point for point in points if point.witness == last.witness][-window:]
    if len(seen) < _LEAST_POINTS:
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
    """Return the probability that values in random order rise at least so steadily.

    This is the exact one-sided test of Mann and Kendall: it counts the pairs that do not rise, equal ones included,
    and the share of permutations that have no more of them. It assumes no distribution, no scale and no large sample.
    Five values that rise throughout give 1/120.
    """
    falls = sum(later <= earlier for i, earlier in enumerate(values) for later in values[i + 1 :])
    # permutations[k] is the number of permutations with k inversions (Kendall and Stuart). Inserting a new largest
    # value into a permutation of n values adds 0 to n inversions.
    permutations = [1]
    for size in range(1, len(values)):
        permutations = [sum(permutations[max(0, k - size) : k + 1]) for k in range(len(permutations) + size)]
    return sum(permutations[: falls + 1]) / math.factorial(len(values))


class HackingWatch:
    """Keeps points and alarms in the file ``path``, so that a halt outlives the process.

    After an alarm no policy is published until a reward version other than the hacked one is live, or an operator
    removes the file. The points are then forgotten. A new reward version without an alarm keeps them, because
    calibrated scores keep their scale over versions.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def halt(self, reward_version: str) -> str | None:
        """Return why nothing may be published while ``reward_version`` is live, or None if publishing is allowed."""
        _, halted = self._read()
        if halted is None:
            return None
        if halted["reward_version"] != reward_version:
            self._write([], None)
            return None
        return self._reason(halted["reason"])

    def observe(self, point: Point, reward_version: str) -> str | None:
        """Remember a point, and halt if it raises an `alarm`. Returns the reason of the halt, or None.

        The point replaces an earlier one of the same round and witness.
        """
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
