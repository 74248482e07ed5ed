"""How far people agree: Krippendorff's alpha, and whether one person repeats what they said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.annotators.votes import Floats, Grades, Ints, Votes
from rewardloop_trainer.clusters import as_share, clustered_mean

_RESAMPLES = 2_000
_BEYOND = 0.025  # the probability that alpha is below the interval, and that it is above
_LEAST_ALPHA = -1.0  # two votes on an item are on average at most twice as far apart as two votes on any items
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha with its 95% interval over items.

    Each end of the interval is the farther of two. One is the bootstrap's. Resamples hold no disagreement that was not
    seen, so that the bootstrap covers far too little if people nearly always agree: if they always did, all resamples
    have an alpha of 1. The other is 1 - D / D_e, with D the bound of `ClusteredShare` for the disagreement within
    items, as a share of the largest disagreement that two votes can have, and D_e the one that chance would give, as it
    was seen.

    Attributes:
        alpha: 1 if all agree, 0 if as often as by chance, below 0 if less; NaN without two votes on an item, or if all
            votes are equal, because chance would then give no disagreement either.
        lower: Lower end of the interval; NaN without an alpha, or with one item alone.
        upper: Upper end of the interval; NaN as the lower one.
        items: Items with two votes or more.
        votes: Votes on them.
    """

    alpha: float
    lower: float
    upper: float
    items: int
    votes: int


def krippendorff(counts: Floats, resamples: int = _RESAMPLES, seed: int = 0) -> Agreement:
    """Return alpha for nominal values, of which any two are equally different.

    Args:
        counts: (items, values), how many people gave each value. Items with fewer than two votes are left out.
        resamples: Bootstrap samples of items; 0: no interval, whose ends are then NaN.
        seed: The seed of the bootstrap.
    """
    # Two of these vectors, one for each value, differ by sqrt(2), whichever values they stand for.
    return _alpha(_Said(counts.sum(1), counts, counts.sum(1), 2.0), resamples, seed)


def krippendorff_interval(item: Ints, value: Floats, resamples: int = _RESAMPLES, seed: int = 0) -> Agreement:
    """Return alpha for values on a scale, whose difference counts squared. Of two values it is the nominal alpha.

    The interval assumes that no two votes are farther apart than the least and the greatest value that were given.

    Args:
        item: (n,), the number of the item of each vote.
        value: (n,).
        resamples: As of `krippendorff`.
        seed: As of `krippendorff`.
    """
    centred = value - value.mean() if len(value) else value
    sizes = np.bincount(item).astype(np.float64)
    sums, squares = (np.bincount(item, weights=of).astype(np.float64) for of in (centred, centred**2))
    most = float(np.ptp(centred)) ** 2 if len(value) else 0.0
    return _alpha(_Said(sizes, sums[:, None], squares, most), resamples, seed)


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said of items, as sums over the votes on each, which are vectors of some dimensions.

    Attributes:
        sizes: (items,), the votes.
        sums: (items, dimensions), the sum of their vectors.
        squares: (items,), the sum of the squared lengths of their vectors.
        most: The largest squared difference of two votes.
    """

    sizes: Floats
    sums: Floats
    squares: Floats
    most: float


def _alpha(said: _Said, resamples: int, seed: int) -> Agreement:
    """Return alpha = 1 - D_o / D_e with its interval over items.

    D_o is the mean squared difference of two votes within an item, each item's pairs weighing as its votes do, and D_e
    that among all votes (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). Over all ordered pairs of n
    vectors, the sum of squared differences is 2 (n sum x^2 - (sum x)^2).
    """
    kept = said.sizes >= 2
    sizes, sums, squares = said.sizes[kept], said.sums[kept], said.squares[kept]
    if not len(sizes):
        return Agreement(math.nan, math.nan, math.nan, 0, 0)
    within = (sizes * squares - (sums**2).sum(1)) / (sizes - 1)
    one = np.ones((1, len(sizes)))
    alpha = float(_alphas(one, sizes, sums, squares, within)[0])
    lower = upper = math.nan
    if resamples and len(sizes) > 1 and math.isfinite(alpha):
        generator = np.random.default_rng(seed)
        shares = np.full(len(sizes), 1 / len(sizes))
        rows = max(1, _CHUNK // len(sizes))
        drawn = [
            _alphas(
                generator.multinomial(len(sizes), shares, min(rows, resamples - start)).astype(np.float64),
                sizes,
                sums,
                squares,
                within,
            )
            for start in range(0, resamples, rows)
        ]
        found = np.concatenate(drawn)
        lower, upper = (float(x) for x in np.nanquantile(found, (_BEYOND, 1 - _BEYOND)))
        # Half the mean squared difference of two votes on an item, as a share of half the largest one.
        apart = np.clip(2 * within / (sizes * said.most), 0.0, 1.0)
        of_items = as_share(clustered_mean(apart, sizes, np.arange(len(sizes))))
        by_chance = 2 * float(_among(one, sizes, sums, squares)[0]) / (float(sizes.sum()) * said.most)
        lower = max(_LEAST_ALPHA, min(lower, 1 - of_items.upper(_BEYOND) / by_chance))
        upper = max(upper, 1 - of_items.lower(_BEYOND) / by_chance)
    return Agreement(alpha, lower, upper, len(sizes), int(sizes.sum()))


def _alphas(times: Floats, sizes: Floats, sums: Floats, squares: Floats, within: Floats) -> Floats:
    """Return alpha of each row of ``times``, (resamples, items): how often each item is drawn."""
    among = _among(times, sizes, sums, squares)
    is_known = among > 1e-9 * (times @ sizes)  # if all votes are equal, there is no disagreement to expect
    return np.where(is_known, 1 - (times @ within) / np.where(is_known, among, 1.0), math.nan)


def _among(times: Floats, sizes: Floats, sums: Floats, squares: Floats) -> Floats:
    """Return half the mean squared difference of two votes on any items, times the number of votes, for each row."""
    total = times @ sizes
    among: Floats = (total * (times @ squares) - ((times @ sums) ** 2).sum(1)) / (total - 1)
    return among


def agreement_of(votes: Votes, classes: int = 3, resamples: int = _RESAMPLES) -> Agreement:
    """Return alpha of the votes. Of a person who voted on an item several times, the last vote counts."""
    counts = np.zeros((len(votes.items), classes))
    last = votes.is_last
    np.add.at(counts, (votes.item[last], votes.choice[last]), 1.0)
    return krippendorff(counts, resamples)


def agreement_of_grades(grades: Grades, resamples: int = _RESAMPLES) -> Agreement:
    """Return alpha of the grades, on their scale. Of a person's grades of one item the last one counts."""
    last = grades.is_last
    return krippendorff_interval(grades.item[last], grades.value[last], resamples)


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
    return _repeated(votes.person, votes.item, votes.choice.astype(np.float64))


def self_consistency_of_grades(grades: Grades) -> Consistency:
    """Compare each grade of a person for an item with the one before it; they are in the order of time."""
    return _repeated(grades.person, grades.item, grades.value)


def _repeated(persons: Ints, items: Ints, values: Floats) -> Consistency:
    last: dict[tuple[int, int], float] = {}
    same: list[bool] = []
    people: set[int] = set()
    for person, item, value in zip(persons.tolist(), items.tolist(), values.tolist(), strict=True):
        before = last.get((person, item))
        if before is not None:
            same.append(before == value)
            people.add(person)
        last[person, item] = value
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
