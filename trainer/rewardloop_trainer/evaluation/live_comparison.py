"""Whether people prefer a published policy to the one that it would replace: asked of their own preferences."""

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

    What a person's signal says is a value in [0, 1], 1 for the candidate:

    - a choice, tie or ranking between answers of both versions to one prompt: the share of such pairs that the
      candidate wins, a tie being half;
    - thumbs and ratings judge one answer: each of the candidate's is set against the next one of the live version's,
      first come, first served and each used once, so that it is half if both are alike. Chance alone decided which
      version answered, so their mean is above half just where the candidate is the better one.

    Judges' and inferred signals, edits, and comparisons of equal texts or within one version say nothing here. Of one
    person at most ``most_per_person`` values count (who is not named counts without bound).

    The interval is valid at every count (see `ConfidenceSequence`), so the test ends as soon as it lies on one side of
    one half: above it the candidate is promoted, below it the live version stays. A candidate that is worse, or equal,
    is promoted with probability at most alpha, however long one watches. After ``max_preferences`` values without a
    decision it is undecided. What comes after the end changes nothing.
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
        """For manifest and metrics: preferences, win rate, and its bounds."""
        bounds = self._sequence.bounds
        return {
            "live_preferences": float(self._sequence.count),
            "live_win_rate": self._sequence.mean,
            "live_win_rate_lower": bounds.lower,
            "live_win_rate_upper": bounds.upper,
        }

    def add(self, event: feedback_pb2.FeedbackEvent) -> Decision:
        """The decision with one more signal, which may say nothing about these versions."""
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
        """By the candidate, of the pairs of different texts by different versions; None: there is no such pair."""
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
