"""Finds bursts: times in which a caller sends far more signals than usual. A burst is shown, and mutes nobody."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rewardloop_trainer.annotators.gestures import Gesture

_WINDOW_MS = 600_000
_LEAST_WINDOWS = 12
_LEAST_SIGNALS = 30
_DEVIATIONS = 8.0
_TO_DEVIATION = 1.4826  # of a normal distribution, from the median absolute deviation


@dataclass(frozen=True, slots=True)
class Burst:
    """A time of ten minutes with a burst.

    Attributes:
        caller: Whose credentials sent it; "" without authentication.
        start_ms: When it began, in milliseconds since 1970.
        signals: The signals in it.
        usual: The median of the caller's windows that had any.
        people: People who gave them.
        new_people: Those of them of whom no earlier signal is known.
    """

    caller: str
    start_ms: int
    signals: int
    usual: float
    people: int
    new_people: int


def find_bursts(gestures: Sequence[Gesture]) -> list[Burst]:
    """Return the bursts in the order of time. Signals count by when they were given, or else by when they arrived.

    A window is a burst if it has `_LEAST_SIGNALS`, and more than the median by `_DEVIATIONS` robust standard
    deviations, which are at least those of a Poisson count. A caller with fewer than `_LEAST_WINDOWS` windows has none.
    """
    windows: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    first_seen: dict[str, int] = {}
    for each in gestures:
        at = (each.arrived_ms if each.given_ms is None else each.given_ms) // _WINDOW_MS
        windows[each.caller][at].append(each.person)
        first_seen[each.person] = min(at, first_seen.get(each.person, at))
    found = []
    for caller, by_window in windows.items():
        if len(by_window) < _LEAST_WINDOWS:
            continue
        counts = sorted(len(given) for given in by_window.values())
        usual = median(counts)
        deviation = max(math.sqrt(usual), _TO_DEVIATION * median(abs(n - usual) for n in counts))
        for at, given in sorted(by_window.items()):
            if len(given) >= max(_LEAST_SIGNALS, usual + _DEVIATIONS * deviation):
                people = Counter(given)
                new = sum(first_seen[person] == at for person in people if person)
                found.append(Burst(caller, at * _WINDOW_MS, len(given), float(usual), len(people), new))
    return found
