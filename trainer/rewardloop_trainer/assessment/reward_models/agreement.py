"""How often a model agrees with people, beside what length, words and other people agree with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rewardloop_trainer.assessment.reward_models.bag_of_words import Preference, fit_bag_of_words
from rewardloop_trainer.clusters import (
    ClusteredDifference,
    ClusteredShare,
    Ints,
    as_difference,
    as_share,
    clustered_mean,
    two_way_mean,
)
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.data.split import keys_of
from rewardloop_trainer.evaluation.evidence import AtRandom, Evidence, Mask, Readings, at_random
from rewardloop_trainer.reward.evaluate import Floats, correctness

_FOLDS = 3
_MOST_WORD_PAIRS = 3_000
_MOST_VALUES = 20  # of one tag: more of them are ids, and no slices
# A response is about as long as the other one if the longer one has at most so many times the characters.
_ALIKE, _FAR_LONGER = 1.1, 2.0


@dataclass(frozen=True, slots=True)
class Choices:
    """People's strict choices among pairs of answers.

    Attributes:
        pairs: The pairs, n.
        weights: (n,), as training weighs them.
        prompts: (n,), the number of the prompt.
        people: (n,), the number of the person. Those who are not known count as one person.
    """

    pairs: tuple[Pair, ...]
    weights: Floats
    prompts: Ints
    people: Ints

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Take the strict choices of the evidence."""
        is_strict = evidence.comparisons.targets == 1.0
        pairs = tuple(pair for pair, kept in zip(evidence.pairs, is_strict, strict=True) if kept)
        said = evidence.comparisons.where(is_strict)
        return cls(pairs, said.weights, said.clusters, _numbers([pair.annotator for pair in pairs]))

    def where(self, kept: Mask) -> Choices:
        pairs = tuple(pair for pair, is_kept in zip(self.pairs, kept, strict=True) if is_kept)
        return Choices(pairs, self.weights[kept], self.prompts[kept], self.people[kept])

    @property
    def has_people(self) -> bool:
        """Whether two or more people chose, so that intervals say something of others."""
        return len(np.unique(self.people)) > 1

    def accuracy(self, margins: Floats) -> ClusteredShare:
        """How often margins, (n,), order the answers as people did, with an error over prompts and people."""
        return as_share(two_way_mean(correctness(margins), self.weights, self.prompts, self.people))

    def at_random(self, margins: Floats) -> AtRandom | None:
        """The same as if the pairs had been drawn at random; None if it is not known how any pair came to be shown."""
        return at_random(self.pairs, margins, self.weights, self.prompts, self.people)

    def gain(self, margins: Floats, others: Floats) -> ClusteredDifference:
        """The accuracy of margins, (n,), less that of others on the same choices."""
        gains = correctness(margins) - correctness(others)
        return as_difference(two_way_mean(gains, self.weights, self.prompts, self.people))


def strict_margins(evidence: Evidence, readings: Readings) -> Floats:
    """Return the margins of the strict choices alone."""
    margins: Floats = readings.margins[evidence.comparisons.targets == 1.0]
    return margins


def length_margins(choices: Choices) -> Floats:
    """Return the margins of a model that prefers the longer answer: the difference in characters, (n,)."""
    return np.array([float(len(pair.chosen) - len(pair.rejected)) for pair in choices.pairs])


def word_margins(choices: Choices, train: Sequence[Pair] = (), seed: int = 0) -> Floats:
    """Return the margins of a bag of words, (n,).

    It learns from ``train``, or without any from the choices themselves, where each third of the prompts is judged by
    a model of the other two.
    """
    if train:
        fitted = fit_bag_of_words([_preference(pair) for pair in train[:_MOST_WORD_PAIRS]], seed=seed)
        return np.array([fitted.margin(_preference(pair)) for pair in choices.pairs])
    folds = choices.prompts % _FOLDS
    margins = np.zeros(len(choices))
    for fold in range(_FOLDS):
        learned = [_preference(choices.pairs[i]) for i in np.flatnonzero(folds != fold)[:_MOST_WORD_PAIRS]]
        fitted = fit_bag_of_words(learned, seed=seed)
        for i in np.flatnonzero(folds == fold):
            margins[i] = fitted.margin(_preference(choices.pairs[i]))
    return margins


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How far people agree among themselves about the same two answers.

    Attributes:
        pairwise: How often one person chooses as another one does.
        by_majority: How often a person chooses as most of the others do: what a model that knows them would reach.
        judgements: The choices about pairs that two or more people judged.
    """

    pairwise: ClusteredShare
    by_majority: ClusteredShare
    judgements: int


def human_ceiling(choices: Choices) -> Ceiling | None:
    """Measure people's agreement with each other; None if no two people judged the same pair."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, pair in enumerate(choices.pairs):
        groups[keys_of(pair.prompt).last, *sorted((pair.chosen, pair.rejected))].append(i)
    agreeing: list[float] = []
    majority: list[float] = []
    places: list[int] = []
    for members in groups.values():
        if len({int(choices.people[i]) for i in members}) < 2 and choices.has_people:
            continue
        if len(members) < 2:
            continue
        chosen = Counter(choices.pairs[i].chosen for i in members)
        for i in members:
            same = chosen[choices.pairs[i].chosen] - 1
            share = same / (len(members) - 1)
            agreeing.append(share)
            majority.append(float(share > 0.5) + 0.5 * float(share == 0.5))
            places.append(i)
    if not places:
        return None
    of, clusters = np.array(places), choices.prompts[np.array(places)]
    one, most = (
        as_share(clustered_mean(np.array(values), choices.weights[of], clusters)) for values in (agreeing, majority)
    )
    return Ceiling(one, most, len(places))


def slices_of(choices: Choices) -> dict[str, Mask]:
    """Return the parts of the choices by tag, source and difference of length, each with its mask, (n,)."""
    found: dict[str, Mask] = {}
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in choices.pairs:
        for key, value in pair.tags.items():
            values[key][value] += 1
    for key in sorted(values):
        if len(values[key]) <= _MOST_VALUES:
            for value, _ in values[key].most_common():
                found[f"{key}={value}"] = np.array([pair.tags.get(key) == value for pair in choices.pairs], dtype=bool)
    for source in sorted({pair.source for pair in choices.pairs}):
        found[f"source={source}"] = np.array([pair.source == source for pair in choices.pairs], dtype=bool)
    ratios = np.array([len(pair.chosen) / max(len(pair.rejected), 1) for pair in choices.pairs])
    found |= {
        "chosen far shorter": ratios < 1 / _FAR_LONGER,
        "chosen shorter": (ratios >= 1 / _FAR_LONGER) & (ratios < 1 / _ALIKE),
        "about as long": (ratios >= 1 / _ALIKE) & (ratios <= _ALIKE),
        "chosen longer": (ratios > _ALIKE) & (ratios <= _FAR_LONGER),
        "chosen far longer": ratios > _FAR_LONGER,
    }
    return {name: mask for name, mask in found.items() if mask.any()}


def _preference(pair: Pair) -> Preference:
    return Preference(keys_of(pair.prompt).root, pair.chosen, pair.rejected)


def _numbers(names: Sequence[str]) -> Ints:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
