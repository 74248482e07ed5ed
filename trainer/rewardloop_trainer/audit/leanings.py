"""How far people lean to the longer response and to the one they see first, and how far some lean more than others.

A *leaning* s is the share of choices that somebody gives to one kind of response whatever the texts are. If the others
choose that kind in a share b, a group that leans chooses it in a share s + (1 - s) b.

For the position b is known: the order is drawn at random, so that somebody without a leaning sees half of their choices
first. For length nothing is known of b, because longer responses may be better. So the leaning to length is measured
against the other people: it is how much more a group leans than they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.audit.judged import Judged
from rewardloop_trainer.evaluation.clusters import ClusteredMean, ClusteredShare, as_share, clustered_mean
from rewardloop_trainer.reports.parts import Measured

ALPHA = 0.025  # on either side of an interval
# Below so many people the interval of a mean over people covers less than it says.
LEAST_PEOPLE = 8
_NONE = Measured(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Leaning:
    """How often people chose one kind of response.

    Attributes:
        chosen: The share of choices that went to it, with its interval over people.
        leaning: By how much they lean to it: against chance, or against the others. It is below 0 if they lean away.
        choices: The choices.
        people: The people who gave them.
        spread: The leaning with its standard error; None if it is unknown.
    """

    chosen: Measured
    leaning: Measured
    choices: int
    people: int
    spread: ClusteredMean | None = None

    def is_beyond(self, alpha: float) -> bool:
        """Whether people surely lean to it or away from it: somebody who does not is taken to with this probability."""
        known = self.spread
        return known is not None and (known.lower(alpha / 2) > 0 or known.upper(alpha / 2) < 0)


def lean_to_first(judged: Iterable[Judged]) -> Leaning:
    """Return the leaning to the response that was seen first, of choices whose display order is known."""
    return _against(_shares(judged, lambda each: each.gesture.first_won), None)


def lean_to_longer(judged: Iterable[Judged], others: Iterable[Judged] = ()) -> Leaning:
    """Return the leaning to the longer response, against that of others. Without others only the share is known."""
    mine, theirs = (_shares(part, lambda each: each.gesture.longer_won) for part in (judged, others))
    return _against(mine, theirs)


@dataclass(frozen=True, slots=True)
class _Share:
    mean: ClusteredShare
    choices: int
    people: int

    def measured(self) -> Measured:
        if self.people < LEAST_PEOPLE:
            return Measured(self.mean.mean, math.nan, math.nan)
        return Measured(self.mean.mean, self.mean.lower(ALPHA), self.mean.upper(ALPHA))


def _shares(judged: Iterable[Judged], of: Callable[[Judged], bool | None]) -> _Share:
    """Count the choices of people of which something is known, with people as clusters."""
    numbers: dict[str, int] = {}
    values, clusters = [], []
    for each in judged:
        value = of(each)
        if value is not None and each.gesture.source == "human":
            values.append(float(value))
            person = each.gesture.person or each.gesture.key
            clusters.append(numbers.setdefault(person, len(numbers)))
    found = clustered_mean(np.array(values), np.ones(len(values)), np.array(clusters, dtype=np.int64))
    return _Share(as_share(found), len(values), len(numbers))


def _against(mine: _Share, theirs: _Share | None) -> Leaning:
    """Return the leaning s = (p - b) / (1 - b), with the errors of p and b carried over (delta method)."""
    base = 0.5 if theirs is None else theirs.mean.mean
    known = mine.people >= LEAST_PEOPLE and (theirs is None or theirs.people >= LEAST_PEOPLE)
    leaning = _NONE
    spread: ClusteredMean | None = None
    if mine.choices and known and base < 1:
        share = mine.mean.mean
        value = (share - base) / (1 - base)
        of_base = 0.0 if theirs is None else theirs.mean.error * (1 - share) / (1 - base) ** 2
        error = math.hypot(mine.mean.error / (1 - base), of_base)
        clusters = mine.mean.clusters if theirs is None else min(mine.mean.clusters, theirs.mean.clusters)
        spread = ClusteredMean(value, error, clusters)
        leaning = Measured(value, spread.lower(ALPHA), spread.upper(ALPHA))
    return Leaning(mine.measured(), leaning, mine.choices, mine.people, spread)
