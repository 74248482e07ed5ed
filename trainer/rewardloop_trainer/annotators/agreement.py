"""How far people agree: Krippendorff's alpha, and whether one person repeats what they said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.annotators.votes import Floats, Votes

_RESAMPLES = 2_000
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha with its 95% bootstrap interval over items.

    Attributes:
        alpha: 1 if all agree, 0 if as often as by chance, below 0 if less; NaN without two votes on an item.
        lower: Lower end of the interval.
        upper: Upper end of the interval.
        items: Items with two votes or more.
        votes: Votes on them.
    """

    alpha: float
    lower: float
    upper: float
    items: int
    votes: int


def krippendorff(counts: Floats, resamples: int = _RESAMPLES, seed: int = 0) -> Agreement:
    """Return alpha for nominal values.

    alpha = 1 - D_o / D_e, where D_o is the share of unequal pairs of votes within an item, each item's pairs weighing
    as its votes do, and D_e that among all votes (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        counts: (items, values), how many people gave each value. Items with fewer than two votes are left out.
        resamples: Bootstrap samples of items; 0: no interval, whose ends are then NaN.
        seed: The seed of the bootstrap.
    """
    counts = counts[counts.sum(1) >= 2]
    sizes = counts.sum(1)
    if not len(counts):
        return Agreement(math.nan, math.nan, math.nan, 0, 0)
    unequal = (sizes**2 - (counts**2).sum(1)) / (sizes - 1)
    one = np.ones((1, len(counts)))
    alpha = float(_alphas(one, counts, sizes, unequal)[0])
    lower = upper = math.nan
    if resamples and len(counts) > 1:
        generator = np.random.default_rng(seed)
        shares = np.full(len(counts), 1 / len(counts))
        rows = max(1, _CHUNK // len(counts))
        drawn = [
            _alphas(
                generator.multinomial(len(counts), shares, min(rows, resamples - start)).astype(np.float64),
                counts,
                sizes,
                unequal,
            )
            for start in range(0, resamples, rows)
        ]
        found = np.concatenate(drawn)
        lower, upper = (float(x) for x in np.nanquantile(found, (0.025, 0.975)))
    return Agreement(alpha, lower, upper, len(counts), int(sizes.sum()))


def _alphas(times: Floats, counts: Floats, sizes: Floats, unequal: Floats) -> Floats:
    """Return alpha of each row of ``times``, (resamples, items): how often each item is drawn."""
    total = times @ sizes
    values = times @ counts
    expected = (total**2 - (values**2).sum(1)) / (total - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = 1 - (times @ unequal) / expected
    return np.where(expected > 0, found, math.nan)  # all votes are equal: there is no disagreement to expect


def agreement_of(votes: Votes, classes: int = 3, resamples: int = _RESAMPLES) -> Agreement:
    """Return alpha of the votes. Of a person who voted on an item several times, the last vote counts."""
    counts = np.zeros((len(votes.items), classes))
    last = votes.is_last
    np.add.at(counts, (votes.item[last], votes.choice[last]), 1.0)
    return krippendorff(counts, resamples)


def agreement_by(votes: Votes, names: Callable[[int], Iterable[str]], least: int = 1) -> dict[str, Agreement]:
    """Return alpha among the votes of each name that ``names`` gives to the vote at a place.

    Names of fewer than ``least`` votes are left out.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place in range(len(votes)):
        for name in names(place):
            places[name].append(place)
    found: dict[str, Agreement] = {}
    for name, chosen in sorted(places.items()):
        if len(chosen) >= least:
            kept = np.zeros(len(votes), dtype=bool)
            kept[chosen] = True
            found[name] = agreement_of(votes.where(kept))
    return found


@dataclass(frozen=True, slots=True)
class Consistency:
    """How often people who were asked the same again said the same.

    Attributes:
        same: The share, from 0 to 1; NaN if nobody was asked twice.
        lower: Lower end of its 95% interval, by Wilson's score.
        upper: Upper end.
        repeats: Repeated votes; each is compared with the one before it.
        people: People who gave them.
    """

    same: float
    lower: float
    upper: float
    repeats: int
    people: int


def self_consistency(votes: Votes) -> Consistency:
    """Compare each vote of a person on an item with their vote before it; the votes are in the order of time."""
    last: dict[tuple[int, int], int] = {}
    same: list[bool] = []
    people: set[int] = set()
    for person, item, choice in zip(votes.person.tolist(), votes.item.tolist(), votes.choice.tolist(), strict=True):
        before = last.get((person, item))
        if before is not None:
            same.append(before == choice)
            people.add(person)
        last[person, item] = choice
    lower, upper = wilson(sum(same), len(same))
    return Consistency(sum(same) / len(same) if same else math.nan, lower, upper, len(same), len(people))


def wilson(successes: float, trials: float, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share; from 0 to 1 without trials."""
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def majority(votes: Votes, classes: int = 2) -> Floats:
    """Return the share of each item's votes that named each class, (items, classes): the majority vote's opinion."""
    counts = np.zeros((len(votes.items), classes))
    np.add.at(counts, (votes.item, votes.choice), votes.weight)
    total = counts.sum(1, keepdims=True)
    shares: Floats = np.where(total > 0, counts / np.maximum(total, 1e-12), 1 / classes)
    return shares
