"""Finds people who push one word: an entity, a product, a slogan.

A signal is about a word if only one of the two compared responses has it. A person is *devoted* to a word if at least
half of their signals are about it, and nearly all of these prefer the same side. Some people are devoted to some word
by chance. A word is pushed if

- so many people are devoted to it, or one person by so many signals, that chance does not explain it, given how often
  signals of the others are about it; and
- they prefer its side more often than the others do, by more than chance: people who dislike what all dislike push
  nothing.

Devoted people of a pushed word are one hand as far as the word goes: `PUSHED` says what their signals about it weigh
together. Someone who truly cares about nothing but the word loses influence by this, and is on the visible list.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.habits import ALPHA, Flag
from rewardloop_trainer.annotators.tails import binomial_tail, poisson_tail

# What the signals of a pushed word's devoted people weigh together, in signals.
PUSHED = 2.0
_LEAST_SIGNALS = 8
_DEVOTED, _ONE_SIDED = 0.5, 0.9
_ASSUMED, _ABOVE = 4.0, 0.1


# A word's hash, and whether its side won.
Word: TypeAlias = tuple[int, bool]


@dataclass(frozen=True, slots=True)
class _Devotion:
    """Of a person, the signals for the side of a word that they prefer, those against it, and all that they gave."""

    times: int
    against: int
    given: int


@dataclass(frozen=True, slots=True)
class Push:
    """A word that is pushed.

    Attributes:
        word: Its hash.
        for_it: Whether the word's side is preferred.
        people: Who is devoted to it.
        signals: Keys of their signals about it.
        probability: Of so much devotion by chance.
    """

    word: int
    for_it: bool
    people: tuple[str, ...]
    signals: tuple[str, ...]
    probability: float


def find_pushes(gestures: Sequence[Gesture]) -> list[Push]:
    """Return the words that are pushed, the most surely pushed first, each signal under one word alone."""
    by_person: dict[str, list[Gesture]] = defaultdict(list)
    for each in gestures:
        if each.person and (each.wins or each.loses):
            by_person[each.person].append(each)
    totals: Counter[Word] = Counter()
    devoted: dict[Word, dict[str, _Devotion]] = defaultdict(dict)
    for person, given in by_person.items():
        counts = _words_of(given)
        totals.update(counts)
        for (word, side), times in counts.items():
            against = counts[word, not side]
            if times + against >= _DEVOTED * len(given) and times >= _ONE_SIDED * (times + against):
                devoted[word, side][person] = _Devotion(times, against, len(given))
    words = len({word for (word, _), times in totals.items() if times >= _LEAST_SIGNALS})
    signals, sizes = sum(map(len, by_person.values())), Counter(map(len, by_person.values()))
    found = []
    for (word, side), people in devoted.items():
        if sum(each.times for each in people.values()) >= _LEAST_SIGNALS:
            both = totals[word, side], totals[word, not side]
            probability = words * _chance(people, both, signals, sizes)
            if probability < ALPHA:
                keys = (g.key for p in people for g in by_person[p] if word in (g.wins if side else g.loses))
                found.append(Push(word, side, tuple(sorted(people)), tuple(keys), probability))
    return _apart(sorted(found, key=lambda push: (push.probability, push.word)))


def flags_of(pushes: Sequence[Push]) -> list[Flag]:
    """Return a flag for each devoted person of each pushed word."""
    return [
        Flag(
            "topic",
            person,
            len(push.signals),
            1.0,
            _DEVOTED,
            push.probability,
            f"{'for' if push.for_it else 'against'} the word with the hash {push.word & (2**64 - 1):016x}, "
            f"as {len(push.people)} ids do",
        )
        for push in pushes
        for person in push.people
    ]


def _words_of(given: Sequence[Gesture]) -> Counter[Word]:
    """Count a person's signals about each word, by the side that won."""
    counts: Counter[Word] = Counter()
    for each in given:
        counts.update((word, True) for word in each.wins)
        counts.update((word, False) for word in each.loses)
    return counts


def _chance(people: Mapping[str, _Devotion], both: tuple[int, int], signals: int, sizes: Mapping[int, int]) -> float:
    """Return how probable so much devotion to a word, and to one side of it, is by chance.

    Args:
        people: Those who are devoted.
        both: All signals in which the word's side won, and in which it lost.
        signals: All signals that compare texts.
        sizes: How many people gave so many of them.
    """
    times, against = sum(each.times for each in people.values()), sum(each.against for each in people.values())
    won, lost = both[0] - times, both[1] - against
    rate = min(0.5, (won + lost + 0.5) / (signals - sum(each.given for each in people.values()) + 1))
    beyond = min(0.99, (won + _ASSUMED / 2) / (won + lost + _ASSUMED) + _ABOVE)
    contradicts = binomial_tail(times, times + against, beyond)
    # By chance a person of n signals is devoted with a probability that depends on n alone.
    expected = sum(binomial_tail(max(1, math.ceil(_DEVOTED * n)), n, rate) * count for n, count in sizes.items())
    single = min(binomial_tail(each.times, each.given, rate) for each in people.values())
    return 2 * max(contradicts, min(poisson_tail(len(people), expected), single * sum(sizes.values())))


def _apart(pushes: Sequence[Push]) -> list[Push]:
    """Leave out words whose signals are nearly all under an earlier word: those beside the pushed one in its texts."""
    taken: set[str] = set()
    found = []
    for push in pushes:
        if sum(key in taken for key in push.signals) <= len(push.signals) / 2:
            found.append(push)
            taken.update(push.signals)
    return found
