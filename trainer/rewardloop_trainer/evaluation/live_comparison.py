"""Decides by people's own preferences whether they prefer a published policy to the one that it would replace."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from rewardloop.formats.signals import judged_alone, person_of
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.evaluation.confidence_sequence import bounds_of, exceeds
from rewardloop_trainer.policy.settings import LiveTestSettings

_OF_PEOPLE = (feedback_pb2.SOURCE_HUMAN, feedback_pb2.SOURCE_UNSPECIFIED)
Decision = Literal["running", "promote", "roll_back", "undecided"]


# A decision is looked for when the people have grown by this factor, so that a look at many of them stays cheap.
_GROWTH = 1.02


@dataclass(slots=True)
class _Person:
    """What one person said: shares that the candidate won, and grades of each version's answers."""

    shares: list[float] = field(default_factory=list)
    grades: dict[str, list[float]] = field(default_factory=dict)
    said: int = 0


class LiveTest:
    """Compares ``candidate`` with ``live``, two versions of the policy, by one person after another.

    Each signal of a person says something between 0 and 1, where 1 favours the candidate:

    - A choice, tie or ranking between answers of both versions to one prompt gives the share of such pairs that the
      candidate wins. A tie counts half.
    - Thumbs and ratings judge one answer. The mean of a person's grades of the candidate is compared with the mean of
      their grades of the live version: 1/2 + difference / 2. People who graded one version alone are paired, one of
      each kind in the order of their arrival. Chance alone decided which version answered, so the mean of these values
      is above one half exactly if the candidate is better.

    Nothing counts before the first signal about an answer of the candidate. While the candidate is trained, people see
    the live version alone, and their grades of it would use up the test.

    A person is one value, the mean of what their signals say, however many they give; the first ``most_per_person``
    count. Signals that name nobody may all be one person's, and count as such. Signals of judges, inferred signals,
    edits, and comparisons of equal texts or within one version do not count.

    The interval is valid at every number of people (see `bounds_of`), so the test ends as soon as there are
    ``least_people`` and the interval lies on one side of one half: above it the candidate is promoted, below it the
    live version stays. A candidate that is not better is promoted with probability at most alpha, however long the test
    runs. The test is undecided after ``max_preferences`` signals without a decision. Later signals change nothing.
    """

    def __init__(self, candidate: str, live: str, settings: LiveTestSettings) -> None:
        if candidate == live:
            raise ValueError(f"version {live} cannot be compared with itself")
        self._candidate = candidate
        self._live = live
        self._settings = settings
        self._people: dict[str, _Person] = {}
        self._preferences = 0
        self._is_shown = False
        self._next_look = settings.least_people
        self._decision: Decision = "running"

    @property
    def decision(self) -> Decision:
        return self._decision

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of signals and people, the win rate and its bounds, for the manifest and the metrics."""
        values = self._values()
        bounds = bounds_of(values, self._settings.alpha)
        return {
            "live_preferences": float(self._preferences),
            "live_people": float(len(values)),
            "live_win_rate": fmean(values) if values else 0.5,
            "live_win_rate_lower": bounds.lower,
            "live_win_rate_upper": bounds.upper,
        }

    def add(self, event: feedback_pb2.FeedbackEvent) -> Decision:
        """Take one more signal into account, if it says something about these versions. Returns the decision."""
        if self._decision != "running" or event.source not in _OF_PEOPLE:
            return self._decision
        about = event.response_versions or [event.policy_version.version]
        if not self._is_shown and self._candidate not in about:
            return self._decision
        self._is_shown = True
        name = person_of(event)
        person = self._people.get(name) or _Person()
        if person.said >= self._settings.most_per_person or not self._hear(event, person):
            return self._decision
        self._people[name] = person
        person.said += 1
        self._preferences += 1
        if self._preferences >= self._settings.max_preferences:
            self._decision = self._look()
            if self._decision == "running":
                self._decision = "undecided"
        elif len(self._people) >= self._next_look and person.said == 1:
            self._next_look = max(len(self._people) + 1, round(len(self._people) * _GROWTH))
            self._decision = self._look()
        return self._decision

    def _look(self) -> Decision:
        values = self._values()
        if len(values) < self._settings.least_people:
            return "running"
        above, below = exceeds(values, 0.5, self._settings.alpha)
        return "promote" if above else "roll_back" if below else "running"

    def _values(self) -> list[float]:
        """Return one value a person, or a pair of people who graded one version each, in the order of their arrival."""
        values: list[float] = []
        waiting: Mapping[str, deque[float]] = {self._candidate: deque(), self._live: deque()}
        for person in self._people.values():
            means = {version: fmean(grades) for version, grades in person.grades.items()}
            if len(means) == 2:
                values.append(fmean([*person.shares, 0.5 + (means[self._candidate] - means[self._live]) / 2]))
                continue
            if person.shares:
                values.append(fmean(person.shares))
                continue
            ((version, mean),) = means.items()
            other = self._live if version == self._candidate else self._candidate
            if waiting[other]:
                against = waiting[other].popleft()
                values.append(0.5 + (mean - against if version == self._candidate else against - mean) / 2)
            else:
                waiting[version].append(mean)
        return values

    def _hear(self, event: feedback_pb2.FeedbackEvent, person: _Person) -> bool:
        """Add what the signal says to the person. Returns False if it says nothing about the two versions."""
        share: float | None = None
        match event.WhichOneof("signal"):
            case "choice":
                share = self._share_won(event, [event.choice.chosen, event.choice.rejected])
            case "ranking":
                share = self._share_won(event, event.ranking.order)
            case "tie":
                won = self._share_won(event, [event.tie.first, event.tie.second])
                share = None if won is None else 0.5
        if share is not None:
            person.shares.append(share)
            return True
        judged = judged_alone(event)
        if judged is None or (version := _version_of(event, judged[0])) not in (self._candidate, self._live):
            return False
        person.grades.setdefault(version, []).append(judged[1])
        return True

    def _share_won(self, event: feedback_pb2.FeedbackEvent, best_first: Iterable[int]) -> float | None:
        """Return the share that the candidate won of the pairs of different texts by different versions.

        Returns None if there is no such pair.
        """
        texts = [(_version_of(event, i), event.responses[i]) for i in best_first]
        won = [
            better[0] == self._candidate
            for i, better in enumerate(texts)
            for worse in texts[i + 1 :]
            if {better[0], worse[0]} == {self._candidate, self._live} and better[1] != worse[1]
        ]
        return sum(won) / len(won) if won else None


def _version_of(event: feedback_pb2.FeedbackEvent, response: int) -> str:
    return event.response_versions[response] if event.response_versions else event.policy_version.version
