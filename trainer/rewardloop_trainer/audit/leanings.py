"""How far people lean to the longer response and to the one they see first, and how far some lean more than others.

A *leaning* s is the share of choices that somebody gives to one kind of response whatever the texts are. If the others
choose that kind in a share b, a group that leans chooses it in a share s + (1 - s) b.

The bounds of s come of those of the shares p of the group and b of the others, which stay within 0 and 1.

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
from rewardloop_trainer.clusters import ClusteredShare, as_share, clustered_mean
from rewardloop_trainer.reports.parts import Measured

ALPHA = 0.025  # on either side of an interval
# Below so many people the interval of a mean over people covers less than it says.
LEAST_PEOPLE = 8
_ROUNDING = 1e-9
_NONE = Measured(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class LeaningBounds:
    """A leaning s = (p - b) / (1 - b) as the ratio 1 - s = (1 - p) / (1 - b) of two shares, with bounds.

    They are those of Donner and Zou (2012, "Closed-form confidence intervals for functions of the normal mean and
    standard deviation", MOVER): a bound is the s at which p - b - s (1 - b) is as far from 0 as the bounds of p and of
    b together allow. So a share of 0 or 1 leaves a leaning open, by as much as its own interval does.

    Attributes:
        share: p, over the people of the group.
        base: b, below 1: over the others, or the number that is known.
    """

    share: ClusteredShare
    base: ClusteredShare | float

    @property
    def value(self) -> float:
        """The leaning."""
        base = self.base if isinstance(self.base, float) else self.base.mean
        return (self.share.mean - base) / (1 - base)

    def lower(self, alpha: float) -> float:
        """The bound that the leaning is below with probability at most about ``alpha``; -infinity if b may be 1."""
        base, _, most = self._base(alpha)
        ratio = _ratio(1 - self.share.mean, 1 - base, self.share.mean - self.share.lower(alpha), most - base, 1)
        return 1 - ratio

    def upper(self, alpha: float) -> float:
        """The bound that the leaning is above with probability at most about ``alpha``."""
        base, least, _ = self._base(alpha)
        return 1 - _ratio(1 - self.share.mean, 1 - base, self.share.upper(alpha) - self.share.mean, base - least, -1)

    def _base(self, alpha: float) -> tuple[float, float, float]:
        """The share b and its bounds."""
        if isinstance(self.base, float):
            return self.base, self.base, self.base
        return self.base.mean, self.base.lower(alpha), self.base.upper(alpha)


def _ratio(above: float, below: float, above_reach: float, below_reach: float, side: int) -> float:
    """Return the c with (c below - above)^2 = above_reach^2 + (c below_reach)^2, a bound of above / below.

    Args:
        above: The upper part of the ratio.
        below: The lower one, above 0.
        above_reach: How far the bound of the upper part is from it.
        below_reach: The same of the lower part.
        side: 1 for the bound above the ratio, which is infinite if none is far enough; -1 for the one below it.
    """
    left = below**2 - below_reach**2
    root = math.sqrt(max((above * below_reach) ** 2 + above_reach**2 * left, 0.0))
    if side > 0:
        return (above * below + root) / left if left > _ROUNDING else math.inf
    product = above * below + root
    return (above**2 - above_reach**2) / product if product > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Leaning:
    """How often people chose one kind of response.

    Attributes:
        chosen: The share of choices that went to it, with its interval over people.
        leaning: By how much they lean to it: against chance, or against the others. It is below 0 if they lean away.
        choices: The choices.
        people: The people who gave them.
        bounds: The leaning's bounds; None if they are unknown.
    """

    chosen: Measured
    leaning: Measured
    choices: int
    people: int
    bounds: LeaningBounds | None = None

    def is_beyond(self, alpha: float) -> bool:
        """Whether people surely lean to it or away from it: somebody who does not is taken to with this probability."""
        known = self.bounds
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
    """Return the leaning of ``mine``, against chance if ``theirs`` is None."""
    base = 0.5 if theirs is None else theirs.mean
    known = mine.people >= LEAST_PEOPLE and (theirs is None or theirs.people >= LEAST_PEOPLE)
    if not (mine.choices and known and (base if isinstance(base, float) else base.mean) < 1):
        return Leaning(mine.measured(), _NONE, mine.choices, mine.people)
    bounds = LeaningBounds(mine.mean, base)
    leaning = Measured(bounds.value, bounds.lower(ALPHA), bounds.upper(ALPHA))
    return Leaning(mine.measured(), leaning, mine.choices, mine.people, bounds)
