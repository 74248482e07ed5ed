"""Whose traffic gives few signals: the share of each slice in the traffic beside its share in the signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewardloop.formats.messages import Turn
from rewardloop_data.rows import Json
from rewardloop_trainer.annotators.agreement import wilson
from rewardloop_trainer.audit.judged import Judged, language_of
from rewardloop_trainer.reports.parts import Measured

# A slice is under-represented if its share in the signals is surely below this part of its share in the traffic.
_LITTLE = 0.5


class UnusableTraffic(ValueError):
    """Raised for a row of traffic that cannot be read. The message says which and why."""


@dataclass(frozen=True, slots=True)
class Covered:
    """How well signals cover a slice of the traffic.

    Attributes:
        name: The slice.
        traffic: Its share in the traffic, from 0 to 1.
        signals: Its share in the signals, with its interval.
        count: The signals.
    """

    name: str
    traffic: float
    signals: Measured
    count: int

    @property
    def is_little(self) -> bool:
        """Whether signals of this slice are surely fewer than half of what its traffic would give."""
        return self.signals.upper < _LITTLE * self.traffic


def traffic_of(rows: Iterable[tuple[int, Json]]) -> Counter[str]:
    """Count the slices of rows {prompt, tags, count}, numbered for messages. ``tags`` and ``count`` may be left out.

    Raises:
        UnusableTraffic: If a row is something else.
    """
    counts: Counter[str] = Counter()
    for number, row in rows:
        if not isinstance(row, dict) or not row.keys() <= {"prompt", "tags", "count"}:
            raise UnusableTraffic(f"row {number}: not an object of prompt, tags and count")
        tags, prompt, count = row.get("tags") or {}, row.get("prompt") or "", row.get("count", 1)
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise UnusableTraffic(f"row {number}: tags is not an object of texts")
        if not isinstance(prompt, str) or not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UnusableTraffic(f"row {number}: prompt is no text, or count no number of requests")
        named = {key: str(value) for key, value in tags.items()}
        for name in _names(prompt, named):
            counts[name] += count
        counts[""] += count
    return counts


def compare_coverage(judged: Sequence[Judged], traffic: Mapping[str, int]) -> list[Covered]:
    """Compare the signals of people with the traffic that `traffic_of` counted, the least covered slice first."""
    total = traffic.get("", 0)
    given: Counter[str] = Counter()
    people = [each for each in judged if each.gesture.source == "human"]
    for each in people:
        (record, *_) = each.records
        user = "".join(turn.content for turn in record.prompt if turn.role == "user")
        given.update(_names(user, dict(record.tags)))
    found = []
    for name, count in traffic.items():
        if name and total:
            share = given[name] / len(people) if people else 0.0
            found.append(Covered(name, count / total, Measured(share, *wilson(given[name], len(people))), given[name]))
    return sorted(found, key=lambda each: (each.signals.value / each.traffic, each.name))


def _names(prompt: str, tags: Mapping[str, str]) -> set[str]:
    return {
        f"language {language_of((Turn('user', prompt),), tags.items())}",
        *(f"tag {key}={value}" for key, value in tags.items()),
    }
