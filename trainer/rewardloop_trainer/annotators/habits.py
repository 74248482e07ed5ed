"""Finds people who judge by a habit: always the first, the longer, the same button; too fast; the same again.

Each test asks whether a person does something in a larger share of their signals than any honest person would. That
share is a stated bound, or what half of the crowd does and something more, if that is above the bound. A person is
flagged if so much of it has a probability below `ALPHA` divided by the number of people who are tested. So at most one
honest crowd in a hundred has a person flagged by a detector, however large it is, as long as no honest person goes
beyond the bound. `tests/unit/trainer/test_crowd_detectors.py` measures it on simulated crowds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.tails import binomial_tail
from rewardloop_trainer.vocabulary import Detector

ALPHA = 0.01

# The largest share of their signals in which an honest person does it, and by how much one goes beyond half the crowd.
_FIRST, _ABOVE_FIRST = 0.7, 0.15
_LONGER, _ABOVE_LONGER = 0.85, 0.1
_BUTTON, _ABOVE_BUTTON = 0.9, 0.05
_HASTE = 0.15
_COPIES = 0.3
_MOST = 0.98
# Nobody reads 200 characters a second (2,400 words a minute), nor decides and clicks in less than 0.3 s.
_CHARACTERS_PER_S, _LEAST_MS = 200.0, 300
_LEAST_SIGNALS = 10


@dataclass(frozen=True, slots=True)
class Flag:
    """A person who was flagged.

    Attributes:
        detector: What flagged them.
        person: Who.
        signals: How many of their signals were looked at.
        share: In which share of them they did it.
        bound: The share that honest people are taken to stay below.
        probability: Of so much in an honest person, at the bound.
        about: What the numbers do not say, such as the word or the other ids.
    """

    detector: Detector
    person: str
    signals: int
    share: float
    bound: float
    probability: float
    about: str = ""


def find_habits(gestures: Sequence[Gesture]) -> list[Flag]:
    """Return who judges by a habit, by detector and person. Signals that name nobody are left out."""
    by_person: dict[str, list[Gesture]] = defaultdict(list)
    for each in gestures:
        if each.person:
            by_person[each.person].append(each)
    first = {p: _known(g.first_won for g in given) for p, given in by_person.items()}
    longer = {p: _known(g.longer_won for g in given) for p, given in by_person.items()}
    return [
        *beyond_bound("first", first, _FIRST, _ABOVE_FIRST),
        *beyond_bound("longer", longer, _LONGER, _ABOVE_LONGER),
        *beyond_bound("button", {p: _same_button(given) for p, given in by_person.items()}, _BUTTON, _ABOVE_BUTTON),
        *beyond_bound("pace", {p: _too_fast(given) for p, given in by_person.items()}, _HASTE),
        *beyond_bound("copies", {p: _repeated(given) for p, given in by_person.items()}, _COPIES),
    ]


def beyond_bound(
    detector: Detector, counts: Mapping[str, tuple[int, int]], bound: float, above: float | None = None
) -> list[Flag]:
    """Return who does something in too large a share of their signals.

    Args:
        detector: By whose name they are flagged.
        counts: Of each person, how often they did it in how many signals; people of fewer than 10 are not tested.
        bound: The largest share in an honest person.
        above: If given, the bound is not below half of the crowd and so much.
    """
    tested = {person: each for person, each in counts.items() if each[1] >= _LEAST_SIGNALS}
    if not tested:
        return []
    if above is not None:
        bound = min(_MOST, max(bound, median(times / signals for times, signals in tested.values()) + above))
    found = []
    for person, (times, signals) in sorted(tested.items()):
        if times / signals > bound:
            probability = binomial_tail(times, signals, bound)
            if probability < ALPHA / len(tested):
                found.append(Flag(detector, person, signals, times / signals, bound, probability))
    return found


def _known(values: Iterable[bool | None]) -> tuple[int, int]:
    known = [value for value in values if value is not None]
    return sum(known), len(known)


def _same_button(given: Sequence[Gesture]) -> tuple[int, int]:
    buttons = Counter(each.button for each in given if each.button)
    return (max(buttons.values()), buttons.total()) if buttons else (0, 0)


def _too_fast(given: Sequence[Gesture]) -> tuple[int, int]:
    """Count the signals that came sooner after the one before than anybody reads; those without a clock are not."""
    timed = sorted((each for each in given if each.given_ms is not None), key=lambda each: each.given_ms or 0)
    gaps = [((b.given_ms or 0) - (a.given_ms or 0), b) for a, b in pairwise(timed) if a.question != b.question]
    return sum(gap < max(_LEAST_MS, 1e3 * b.characters / _CHARACTERS_PER_S) for gap, b in gaps), len(gaps)


def _repeated(given: Sequence[Gesture]) -> tuple[int, int]:
    """Count the signals that say again what the person has said."""
    return len(given) - len({each.content for each in given}), len(given)
