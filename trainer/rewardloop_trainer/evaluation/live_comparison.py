"""Decides by people's own preferences whether they prefer a published policy to the one that it would replace."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Literal

from rewardloop.formats.signals import judged_alone
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.evaluation.confidence_sequence import ConfidenceSequence
from rewardloop_trainer.policy.settings import LiveTestSettings

Decision = Literal["running", "promote", "roll_back", "undecided"]


class LiveTest:
    """Compares ``candidate`` with ``live``, two versions of the policy, by one signal after another.

    Each signal of a person becomes a value in [0, 1], where 1 favours the candidate:

    - A choice, tie or ranking between answers of both versions to one prompt gives the share of such pairs that the
      candidate wins. A tie counts half.
    - Thumbs and ratings judge one answer. Each one of the candidate is paired with the next one of the live version,
      in the order of their arrival and each used once; the value is one half if both got the same grade. Chance alone
      decided which version answered, so the mean is above one half exactly if the candidate is better.

    Signals of judges, inferred signals, edits, and comparisons of equal texts or within one version do not count. At
    most ``most_per_person`` values of one person count; signals that name nobody count without bound.

    The interval is valid at every count (see `ConfidenceSequence`), so the test ends as soon as the interval lies on
    one side of one half: above it the candidate is promoted, below it the live version stays. A candidate that is not
    better is promoted with probability at most alpha, however long the test runs. The test is undecided after
    ``max_preferences`` values without a decision. Later signals change nothing.
    """

    def __init__(self, candidate: str, live: str, settings: LiveTestSettings) -> None:
        if candidate == live:
            raise ValueError(f"version {live} cannot be compared with itself")
        self._candidate = candidate
        self._live = live
        self._settings = settings
        self._sequence = ConfidenceSequence(settings.alpha)
        self._waiting: Mapping[str, deque[float]] = {candidate: deque(), live: deque()}
        self._by_person: Counter[str] = Counter()
        self._decision: Decision = "running"

    @property
    def decision(self) -> Decision:
        return self._decision

    @property
    def figures(self) -> dict[str, float]:
        """The number of preferences, the win rate and its bounds, for the manifest and the metrics."""
        bounds = self._sequence.bounds
        return {
            "live_preferences": float(self._sequence.count),
            "live_win_rate": self._sequence.mean,
            "live_win_rate_lower": bounds.lower,
            "live_win_rate_upper": bounds.upper,
        }

    def add(self, event: feedback_pb2.FeedbackEvent) -> Decision:
        """Take one more signal into account, if it says something about these versions. Returns the decision."""
        if self._decision != "running" or not self._counts(event):
            return self._decision
        value = self._value(event)
        if value is None:
            return self._decision
        self._by_person[event.annotator_id] += 1
        bounds = self._sequence.add(value)
        if bounds.lower >= 0.5:
            self._decision = "promote"
        elif bounds.upper <= 0.5:
            self._decision = "roll_back"
        elif self._sequence.count >= self._settings.max_preferences:
            self._decision = "undecided"
        return self._decision

    def _counts(self, event: feedback_pb2.FeedbackEvent) -> bool:
        if event.source not in (feedback_pb2.SOURCE_HUMAN, feedback_pb2.SOURCE_UNSPECIFIED):
            return False
        return not event.annotator_id or self._by_person[event.annotator_id] < self._settings.most_per_person

    def _value(self, event: feedback_pb2.FeedbackEvent) -> float | None:
        match event.WhichOneof("signal"):
            case "choice":
                return self._share_won(event, [event.choice.chosen, event.choice.rejected])
            case "ranking":
                return self._share_won(event, event.ranking.order)
            case "tie":
                won = self._share_won(event, [event.tie.first, event.tie.second])
                return None if won is None else 0.5
        judged = judged_alone(event)
        return None if judged is None else self._paired(event, *judged)

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

    def _paired(self, event: feedback_pb2.FeedbackEvent, response: int, label: float) -> float | None:
        version = _version_of(event, response)
        if version not in self._waiting:
            return None
        other = self._live if version == self._candidate else self._candidate
        if not self._waiting[other]:
            self._waiting[version].append(label)
            return None
        against = self._waiting[other].popleft()
        return 0.5 + (label - against if version == self._candidate else against - label) / 2


def _version_of(event: feedback_pb2.FeedbackEvent, response: int) -> str:
    return event.response_versions[response] if event.response_versions else event.policy_version.version
