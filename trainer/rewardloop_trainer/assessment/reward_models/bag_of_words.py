"""A bag-of-words reward model: the baseline that a reward model has to beat on the same choices.

Its score is linear in which words and pairs of neighbouring words an answer holds. It is fitted by the Bradley-Terry
likelihood with a ridge, whose weight is chosen on a part of the choices.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)
_STEPS = 120
_VALIDATED_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Preference:
    """``chosen`` was preferred to ``rejected``. Preferences of one ``group``, such as a prompt, are validated alike."""

    group: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class BagOfWords:
    """A fitted model. ``weights`` holds what each word and pair of words adds to a score."""

    weights: Mapping[str, float]

    def score(self, text: str) -> float:
        return sum(self.weights.get(word, 0.0) for word in words_of(text))

    def margin(self, preference: Preference) -> float:
        """The score of the chosen text minus that of the rejected one."""
        return self.score(preference.chosen) - self.score(preference.rejected)

    def accuracy(self, preferences: Sequence[Preference]) -> float:
        """The share of preferences whose chosen text scores higher; equal scores count half. NaN without any."""
        right = [(m > 0) + 0.5 * (m == 0) for m in map(self.margin, preferences)]
        return sum(right) / len(right) if right else float("nan")


def words_of(text: str) -> set[str]:
    """The distinct words, marks and pairs of neighbours in a text, in lower case."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


def fit_bag_of_words(preferences: Sequence[Preference], *, seed: int = 0) -> BagOfWords:
    """Fit the model; the ridge is chosen by the likelihood of a part of the groups, and then fitted on all of them.

    Preferences whose group is the only one are divided at random instead.
    """
    if not preferences:
        return BagOfWords({})
    design = _Design.of(preferences)
    groups = sorted({p.group for p in preferences})
    chance = random.Random(seed)
    kept_apart = set(chance.sample(groups, max(1, round(len(groups) * _VALIDATED_SHARE)))) if len(groups) > 1 else set()
    is_apart = np.array([p.group in kept_apart or (not kept_apart and chance.random() < 0.15) for p in preferences])
    ridge = RIDGES[-1]
    if is_apart.any() and not is_apart.all():
        losses = [_loss(design.margins(design.fit(each, ~is_apart))[is_apart]) for each in RIDGES]
        ridge = RIDGES[int(np.argmin(losses))]
    weights = design.fit(ridge, np.ones(len(preferences), dtype=bool))
    return BagOfWords(dict(zip(design.words, weights.tolist(), strict=True)))


@dataclass(frozen=True, slots=True)
class _Design:
    """The differences of the pairs' words as a sparse matrix: entry i is ``value[i]`` in row ``row[i]``."""

    words: tuple[str, ...]
    pairs: int
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    value: Floats

    @classmethod
    def of(cls, preferences: Iterable[Preference]) -> _Design:
        places: dict[str, int] = {}
        entries: list[tuple[int, int, float]] = []
        pairs = 0
        for pairs, preference in enumerate(preferences, 1):
            chosen, rejected = words_of(preference.chosen), words_of(preference.rejected)
            for words, sign in ((chosen - rejected, 1.0), (rejected - chosen, -1.0)):
                entries += [(pairs - 1, places.setdefault(word, len(places)), sign) for word in sorted(words)]
        row, column, value = (np.array(each) for each in zip(*entries, strict=True)) if entries else ((), (), ())
        return cls(
            tuple(places), pairs, np.asarray(row, np.int64), np.asarray(column, np.int64), np.asarray(value, float)
        )

    def margins(self, weights: Floats) -> Floats:
        margins: Floats = np.bincount(self.row, self.value * weights[self.column], self.pairs).astype(np.float64)
        return margins

    def fit(self, ridge: float, used: npt.NDArray[np.bool_]) -> Floats:
        """Minimise the loss of the used pairs plus ``ridge`` / 2 times the squared weights, by accelerated gradients.

        Each weight has a step of its own, from a bound of the curvature: a pair with m words bounds that of each of
        them by m / 4 (Nesterov 1983; the diagonal as in coordinate-wise majorisation).
        """
        size = len(self.words)
        of_pair = np.bincount(self.row, np.abs(self.value), self.pairs) * used
        step = 1.0 / (ridge + np.bincount(self.column, of_pair[self.row], size) / 4)
        weights, ahead = np.zeros(size), np.zeros(size)
        for number in range(1, _STEPS + 1):
            pull = used / (1 + np.exp(np.clip(self.margins(ahead), -30, 30)))
            gradient = ridge * ahead - np.bincount(self.column, self.value * pull[self.row], size)
            moved = ahead - step * gradient
            ahead = moved + (number - 1) / (number + 2) * (moved - weights)
            weights = moved
        return weights


def _loss(margins: Floats) -> float:
    return float(np.logaddexp(0.0, -margins).mean())
