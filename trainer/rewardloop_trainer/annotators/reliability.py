"""How often each person is right about which of two responses is better, as far as can be known.

A vote is compared with what is known of its item without the person who gave it: the votes of others, each counting by
its person's own reliability, and the prediction of a model that has not learned from that person. If neither says
anything, the vote tells nothing about its person, who then stays where the crowd is.

This is belief propagation for Dawid and Skene's model with one number a person (Liu, Peng and Ihler 2012, "Variational
Inference for Crowdsourcing"). A person's reliability has a distribution on a grid. Its prior is the crowd's own
distribution, estimated with the rest (empirical Bayes), so that people of few votes are shrunk towards the crowd as it
is, and not towards a crowd of honest people if a part of it spams.

It assumes that people err independently of each other given the truth, equally often on every item, and that votes are
right more often than not over the whole crowd. Ids of one hand break the first; `hands` finds them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rewardloop_trainer.annotators.votes import FIRST, Floats, Votes
from rewardloop_trainer.data.logistic import sigmoid

# Of a person of whom nothing is known: right three times in four, as two people agree on three pairs in four or so.
ASSUMED = 0.75
# How many people the assumed distribution counts as, beside those of the crowd.
_ASSUMED_PEOPLE = 4.0
_GRID = np.linspace(0.02, 0.98, 49)
_ALPHA, _BETA = 4.5, 1.5
_ROUNDS = 50
_CLOSE = 1e-4
# No item is surer than this many nats, so that an error of the model cannot outweigh a person's record.
_MOST_NATS = 6.0
_SLICE_LEAST, _SLICE_ASSUMED = 20.0, 20.0


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of a person.

    Attributes:
        accuracy: The probability that a vote of theirs is right, the mean of its distribution.
        deviation: The standard deviation of that distribution.
        votes: Their votes, as counted.
        informed: How many of these say something about the person: the sum of (2c - 1)^2, where c is how sure the item
            is without them.
        slices: Their accuracy in the slices in which there are enough of their votes, by key=value.
    """

    accuracy: float
    deviation: float
    votes: float
    informed: float
    slices: Mapping[str, float] = field(default_factory=dict)

    def in_slices(self, slices: Iterable[str]) -> float:
        """Return the accuracy among votes with these tags: the mean of the known slices, or the overall one."""
        known = [self.slices[each] for each in slices if each in self.slices]
        return sum(known) / len(known) if known else self.accuracy


@dataclass(frozen=True, slots=True)
class Reliability:
    """What is known of a crowd.

    Attributes:
        people: By name.
        crowd: The accuracy of a person of the crowd of whom nothing is known.
        truth: (items,), the probability that the first response of each item is the better one.
        compared: Share of the votes that something could be compared with, each by how sure that was.
    """

    people: Mapping[str, Person]
    crowd: float
    truth: Floats
    compared: float

    def of(self, person: str, slices: Iterable[str] = ()) -> float:
        """Return a person's accuracy; the crowd's for one who never voted."""
        known = self.people.get(person)
        return self.crowd if known is None else known.in_slices(slices)


def estimate_reliability(votes: Votes, prior: Floats | None = None) -> Reliability:
    """Estimate the reliability of everybody who voted. Ties are left out: they contradict nobody.

    Args:
        votes: The votes.
        prior: (n,), for each vote the log odds that the first response of its item is the better one, by what has not
            learned from the vote's person; 0 where nothing is known. None: nowhere.
    """
    is_strict = votes.choice <= 1
    known = np.zeros(int(is_strict.sum())) if prior is None else np.clip(prior[is_strict], -_MOST_NATS, _MOST_NATS)
    votes = votes.where(is_strict)
    p, m = len(votes.people), len(votes.items)
    sign = np.where(votes.choice == FIRST, 1.0, -1.0)
    _, own = np.unique(np.stack([votes.person, votes.item]), axis=1, return_inverse=True)
    own = own.reshape(-1)
    mass = _assumed()
    accuracy = np.full(p, ASSUMED)
    posterior = np.tile(mass, (p, 1))
    sure = np.zeros(len(votes))
    for _ in range(_ROUNDS if len(votes) else 0):
        said = votes.weight * sign * np.log(accuracy / (1 - accuracy))[votes.person]
        mine = np.bincount(own, weights=said)[own]
        others = np.bincount(votes.item, weights=said, minlength=m)[votes.item] - mine
        sure = np.clip(known + others, -_MOST_NATS, _MOST_NATS)
        likely = _likelihood(votes, sign * sure)
        posterior = _posterior(likely, mass)
        mass = (_assumed() * _ASSUMED_PEOPLE + posterior.sum(0)) / (_ASSUMED_PEOPLE + p)
        before, accuracy = accuracy, 0.5 * accuracy + 0.5 * (posterior @ _GRID)
        if float(np.abs(accuracy - before).max()) < _CLOSE:
            break
    informed = (2 * sigmoid(np.abs(sure)) - 1) ** 2
    means = posterior @ _GRID
    deviation = np.sqrt(np.maximum(posterior @ _GRID**2 - means**2, 0))
    counted = np.bincount(votes.person, weights=votes.weight, minlength=p)
    informing = np.bincount(votes.person, weights=votes.weight * informed, minlength=p)
    slices = _by_slice(votes, sign * sure, means)
    people = {
        name: Person(float(means[i]), float(deviation[i]), float(counted[i]), float(informing[i]), slices.get(i, {}))
        for i, name in enumerate(votes.people)
    }
    total = float(votes.weight.sum())
    compared = float(votes.weight @ informed) / total if total else 0.0
    return Reliability(people, float(mass @ _GRID), _truth(votes, sign, known, means), compared)


def truth_log_odds(margins: Floats, accuracy: float) -> Floats:
    """Turn a model's log odds of a *vote* into log odds of the truth, given how often a vote is right.

    With v = t a + (1 - t)(1 - a), where v is the probability of the vote, t that of the truth and a the accuracy.
    """
    spread = max(2 * accuracy - 1, 1e-3)
    truth = np.clip((sigmoid(margins) - (1 - accuracy)) / spread, 1e-3, 1 - 1e-3)
    found: Floats = np.log(truth / (1 - truth))
    return found


def _assumed() -> Floats:
    mass = _GRID ** (_ALPHA - 1) * (1 - _GRID) ** (_BETA - 1)
    found: Floats = mass / mass.sum()
    return found


def _likelihood(votes: Votes, agreeing: Floats) -> Floats:
    """Return the log-likelihood of each person's votes at each accuracy of the grid, (people, grid).

    ``agreeing``, (n,), are the log odds, without the person, that the vote is right.
    """
    right = sigmoid(agreeing)
    p = len(votes.people)
    found = [
        np.bincount(votes.person, weights=votes.weight * np.log(a * right + (1 - a) * (1 - right)), minlength=p)
        for a in _GRID.tolist()
    ]
    return np.stack(found, axis=1)


def _posterior(likely: Floats, mass: Floats) -> Floats:
    logs = likely + np.log(np.maximum(mass, 1e-300))
    found = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(found / found.sum(1, keepdims=True))


def _truth(votes: Votes, sign: Floats, known: Floats, accuracy: Floats) -> Floats:
    """Return the probability of each item's first response, by all votes and the mean prior."""
    m = len(votes.items)
    said = votes.weight * sign * np.log(accuracy / (1 - accuracy))[votes.person]
    count = np.maximum(np.bincount(votes.item, minlength=m), 1)
    prior = np.bincount(votes.item, weights=known, minlength=m) / count
    return sigmoid(prior + np.bincount(votes.item, weights=said, minlength=m))


def _by_slice(votes: Votes, agreeing: Floats, accuracy: Floats) -> dict[int, dict[str, float]]:
    """Return the accuracy of people in the slices that have enough of their votes, and not all of them.

    It is shrunk towards the person's own by `_SLICE_ASSUMED` votes.
    """
    if not votes.slices:
        return {}
    places: dict[str, list[int]] = defaultdict(list)
    for place, names in enumerate(votes.slices):
        for name in names:
            places[name].append(place)
    p = len(votes.people)
    total = np.bincount(votes.person, minlength=p)
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, chosen in places.items():
        if len(chosen) < _SLICE_LEAST:
            continue
        kept = np.zeros(len(votes), dtype=bool)
        kept[chosen] = True
        part = votes.where(kept)
        counted = np.bincount(part.person, minlength=p)
        enough = np.flatnonzero((counted >= _SLICE_LEAST) & (counted < total))
        if not len(enough):
            continue
        likely = _likelihood(part, agreeing[kept])[enough]
        own = accuracy[enough, None]
        prior = _SLICE_ASSUMED * (own * np.log(_GRID) + (1 - own) * np.log(1 - _GRID))
        means = _posterior(likely + prior, np.ones(len(_GRID))) @ _GRID
        for place, mean in zip(enough.tolist(), means.tolist(), strict=True):
            found[place][name] = mean
    return found
