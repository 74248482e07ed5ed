"""Chooses which pairs a judge is asked about: a share of what people judged, and of the rest the uncertain ones first.

The share that people judged measures the judge. It is drawn by a digest of each pair, so that it is a fair sample of
what people judge, and the same one after a restart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from rewardloop_trainer.judging.pairs.candidates import Candidate
from rewardloop_trainer.judging.pairs.journal import PickedAs

# Scores and spreads of both responses of each pair; None for a pair that was not scored.
Scored = tuple[tuple[float, float], tuple[float, float]]
ScorePairs = Callable[[Sequence[Candidate]], Sequence[Scored | None]]


@dataclass(frozen=True, slots=True)
class PickRules:
    """What is picked.

    Attributes:
        shared_share: Share of the judged pairs that people judged too, from 0 to 1.
        least_shared: Pairs that people judged and that are judged at least, while there are any.
        uncertain_share: Share of the other pairs that is taken by the uncertainty of their scores; the rest by lot.
    """

    shared_share: float = 0.1
    least_shared: int = 100
    uncertain_share: float = 0.8


def pick(
    judged_by_people: Mapping[str, Candidate],
    others: Mapping[str, Candidate],
    known: Collection[str],
    shared_so_far: int,
    room: int,
    rules: PickRules,
    score: ScorePairs | None = None,
) -> list[tuple[Candidate, PickedAs]]:
    """Return the pairs to judge next, with why each was picked.

    Args:
        judged_by_people: Pairs that people judged, by their keys.
        others: Pairs that nobody judged, by their keys; empty while the judge is muted.
        known: Keys of the pairs that were picked before.
        shared_so_far: How many of those people had judged.
        room: Most pairs to return.
        rules: The shares.
        score: Gives the scores by which pairs are uncertain; None if none are taken by that.
    """
    shared = sorted((key for key in judged_by_people if key not in known), key=_lot)
    rest = sorted((key for key in others if key not in known and key not in judged_by_people), key=_lot)
    total = len(known) + room
    wanted = max(rules.least_shared, math.ceil(rules.shared_share * total)) - shared_so_far
    if not rest:
        # Pairs that people judged are no reason to ask for more of them than the measurement needs.
        most = math.ceil(rules.shared_share * (len(known) + len(shared)))
        wanted = max(rules.least_shared, most) - shared_so_far
    from_shared = shared[: max(0, min(wanted, room))]
    room -= len(from_shared)
    by_score = _most_uncertain(rest, others, round(rules.uncertain_share * min(room, len(rest))), score)
    by_lot = [key for key in rest if key not in by_score][: room - len(by_score)]
    found: list[tuple[Candidate, PickedAs]] = [(judged_by_people[key], "shared") for key in from_shared]
    found += [(others[key], "uncertain") for key in by_score]
    return found + [(others[key], "unasked") for key in by_lot]


def uncertainty(scored: Scored) -> float:
    """How little a pair's scores say about which response is better: spread of the difference over its size.

    Infinite for equal scores. A model without a spread says it by the difference alone.
    """
    (first, second), (one, other) = scored
    spread = math.hypot(one, other) or 1.0
    return math.inf if first == second else spread / abs(first - second)


def _most_uncertain(
    keys: Sequence[str], candidates: Mapping[str, Candidate], most: int, score: ScorePairs | None
) -> list[str]:
    """Return the most uncertain of the keys, without those that have no scores."""
    if most <= 0:
        return []
    asked = [candidates[key] for key in keys if candidates[key].scores is None]
    given = dict(zip((each.key for each in asked), score(asked), strict=True)) if score and asked else {}
    scored: dict[str, Scored] = {}
    for key in keys:
        each = candidates[key]
        if each.scores is not None:
            scored[key] = (each.scores, each.spreads or (0.0, 0.0))
        elif (found := given.get(key)) is not None:
            scored[key] = found
    return sorted(scored, key=lambda key: (-uncertainty(scored[key]), _lot(key)))[:most]


def _lot(key: str) -> str:
    return hashlib.sha256(f"picked/{key}".encode()).hexdigest()
