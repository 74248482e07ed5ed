"""Detects reward hacking: our reward rises while the preference of independent witnesses falls."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rewardloop_trainer.vocabulary import Witness

_LEAST_POINTS = 5
# So many candidates in a row must be better by score and by the witness before publishing goes on.
_AGREEING = 2


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate, as the reward model that trained it and a witness that did not train it see it.

    Attributes:
        round: The number of the candidate's round.
        witness: Who compared the candidate with the live policy.
        score: The candidate's mean calibrated score.
        score_lower: The lower 95% bound of its win rate over the live policy by score.
        win_rate: Its win rate over the live policy by the witness.
        win_rate_upper: The upper bound of that win rate.
        win_rate_lower: Its lower bound; 0 in a file of an earlier release, which did not keep it.
    """

    round: int
    witness: Witness
    score: float
    score_lower: float
    win_rate: float
    win_rate_upper: float
    win_rate_lower: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether score and witness both prefer the candidate, beyond their intervals."""
        return self.score_lower > 0.5 and self.win_rate_lower > 0.5


@dataclass(frozen=True, slots=True)
class Halt:
    """Why nothing is published.

    Attributes:
        reason: What raised the alarm.
        reward_version: The reward version that was live.
        witness: Who contradicted it.
        agreed: The rounds since then whose candidate score and witness both preferred, without one between them that
            they did not.
    """

    reason: str
    reward_version: str
    witness: Witness = "judge"
    agreed: tuple[int, ...] = ()


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

    After an alarm no policy is published. Rounds go on, and their candidates are measured: when score and judge have
    both preferred two candidates in a row, publishing goes on. A new reward version alone lifts nothing, because it may
    have the same fault. A halt that people raised in a live test ends only when a person removes the file, because
    without publishing nobody can be asked again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def halt(self) -> str | None:
        """Return why nothing may be published, or None if publishing is allowed."""
        _, halted = self._read()
        return None if halted is None else self._reason(halted)

    def awaits_person(self) -> bool:
        """Say whether no measurement of a later candidate can end the halt."""
        _, halted = self._read()
        return halted is not None and halted.witness == "live"

    def observe(self, point: Point, reward_version: str) -> str | None:
        """Remember a point, and halt if it raises an `alarm`. Returns the reason of the halt, or None.

        The point replaces an earlier one of the same round and witness. Points from before a halt are forgotten.
        """
        points, halted = self._read()
        points = [p for p in points if (p.round, p.witness) != (point.round, point.witness)] + [point]
        if (reason := alarm(points)) is not None:
            points = []
            halted = Halt(f"round {point.round}: {reason}", reward_version, point.witness)
        elif halted is not None and halted.witness == point.witness == "judge":
            agreed = dict.fromkeys((*halted.agreed, point.round)) if point.agrees else ()
            halted = None if len(agreed) >= _AGREEING else replace(halted, agreed=tuple(agreed))
        self._write(points, halted)
        return None if halted is None else self._reason(halted)

    def _reason(self, halted: Halt) -> str:
        way = f"a person removes {self._path}"
        if halted.witness == "judge":
            left = _AGREEING - len(halted.agreed)
            way = f"{left} more candidates in a row win by score and by the judge, or {way}"
        return f"reward hacking, {halted.reason}; no policy is published until {way}"

    def _read(self) -> tuple[list[Point], Halt | None]:
        try:
            raw = json.loads(self._path.read_text())
        except FileNotFoundError:
            return [], None
        halted = raw["halted"]
        if halted is not None:
            halted = Halt(**{**halted, "agreed": tuple(halted.get("agreed", ()))})
        return [Point(**each) for each in raw["points"]], halted

    def _write(self, points: Sequence[Point], halted: Halt | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".writing")
        kept = {"points": [asdict(point) for point in points], "halted": asdict(halted) if halted else None}
        temporary.write_text(json.dumps(kept, indent=2))
        os.replace(temporary, self._path)
