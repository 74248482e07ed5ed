"""Preference signals as typed training records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from rewardloop.formats.signals import judged_alone, person_of, signal_key
from rewardloop.formats.text import Turn, turns
from rewardloop.v1 import feedback_pb2, policy_pb2

Prompt: TypeAlias = tuple[Turn, ...]
SourceName: TypeAlias = Literal["human", "llm_judge", "implicit"]

# What a signal of each source weighs if nothing was measured (`weights.source_weights`). One that was inferred from
# behaviour says less about a person's taste than one that was stated.
SOURCE_WEIGHTS: Mapping[SourceName, float] = {"human": 1.0, "llm_judge": 1.0, "implicit": 0.5}

_SOURCES: Mapping[int, SourceName] = {
    feedback_pb2.SOURCE_HUMAN: "human",
    feedback_pb2.SOURCE_LLM_JUDGE: "llm_judge",
    feedback_pb2.SOURCE_IMPLICIT: "implicit",
}
# Weight, event id, tags, annotator and source of a signal.
About: TypeAlias = tuple[float, str, Mapping[str, str], str, SourceName]


@dataclass(frozen=True, slots=True)
class Pair:
    """``chosen`` was preferred to ``rejected``.

    Attributes:
        weight: Scales its share of the loss; one human choice has 1. The pairs of one ranking share its weight.
        event_id: The signal that it comes from. Pairs of one signal are one judgement and make one cluster.
        tags: The labels of the signal.
        annotator: Who judged, a person or a model, by `person_of`; "" if it is unknown. Ids that are one hand are one
            annotator once `weights.trust` has weighed the record.
        source: Who or what judged.
        margin: How strong the preference is, from 0 (not said) to 1 (far better).
        exposure: The probability with which a uniform rule would have shown the two responses, as a ratio to that with
            which they were shown; None if that is not known.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    weight: float = 1.0
    event_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    annotator: str = ""
    source: SourceName = "human"
    margin: float = 0.0
    exposure: float | None = None


@dataclass(frozen=True, slots=True)
class TiedPair:
    """Two responses that were judged equally good."""

    prompt: Prompt
    first: str
    second: str
    weight: float = 1.0
    event_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    annotator: str = ""
    source: SourceName = "human"


@dataclass(frozen=True, slots=True)
class RankedList:
    """Three or more distinct responses, best first. The weight is that of the whole ranking, by `comparisons_in`."""

    prompt: Prompt
    responses: tuple[str, ...]
    weight: float = 1.0
    event_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    annotator: str = ""
    source: SourceName = "human"


@dataclass(frozen=True, slots=True)
class Labelled:
    """One response judged on its own. ``label`` is in [0, 1], where 1 is the best; thumbs are 0 and 1."""

    prompt: Prompt
    response: str
    label: float
    weight: float = 1.0
    event_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    annotator: str = ""
    source: SourceName = "human"

    @property
    def is_wanted(self) -> bool:
        """Whether the label is in the upper half of the scale."""
        return self.label > 0.5

    @property
    def is_undecided(self) -> bool:
        """Whether the label is in the very middle of the scale: neither wanted nor unwanted."""
        return self.label == 0.5


Record: TypeAlias = Pair | TiedPair | RankedList | Labelled
_Record = TypeVar("_Record", bound=Record)


@dataclass(frozen=True, slots=True)
class Records:
    """Training records in the order of their events; ``identical`` events were dropped, as they compare equal texts."""

    records: tuple[Record, ...]
    identical: int


def from_event(event: feedback_pb2.FeedbackEvent) -> list[Record]:
    """The records of one valid event.

    A ranking keeps the best place of a text that it repeats; if two responses are left, it becomes a pair.

    Returns:
        One record; none if the compared responses are the same text.

    Raises:
        ValueError: If the event has no signal.
        IndexError: If the signal names a response that is not there.
    """
    prompt = turns(event.prompt)
    responses = event.responses
    weight = SOURCE_WEIGHTS[source_of(event)]
    about: About = (weight, signal_key(event), dict(event.tags), person_of(event), source_of(event))
    match event.WhichOneof("signal"):
        case "choice":
            chosen, rejected = _at(responses, event.choice.chosen), _at(responses, event.choice.rejected)
            return _pair(prompt, chosen, rejected, about, event.choice.strength, _known_exposure(event))
        case "edit":
            return _pair(prompt, event.edit.edited_text, _at(responses, event.edit.response), about)
        case "tie":
            first, second = _at(responses, event.tie.first), _at(responses, event.tie.second)
            return [] if first == second else [TiedPair(prompt, first, second, *about)]
        case "ranking":
            best_first = tuple(dict.fromkeys(_at(responses, i) for i in event.ranking.order))
            if len(best_first) == 2:
                return _pair(prompt, best_first[0], best_first[1], about)
            if len(best_first) < 2:
                return []
            counted = 1.0 if source_of(event) == "implicit" else comparisons_in(len(best_first))
            return [RankedList(prompt, best_first, weight * counted, *about[1:])]
    if (judged := judged_alone(event)) is not None:
        response, label = judged
        return [Labelled(prompt, _at(responses, response), label, *about)]
    raise ValueError(f"event {event.event_id!r} carries no signal")


def from_events(events: Iterable[feedback_pb2.FeedbackEvent]) -> Records:
    """The records of many events, and the number of events that compare equal texts. Raises as `from_event`."""
    records: list[Record] = []
    identical = 0
    for event in events:
        found = from_event(event)
        records += found
        identical += not found
    return Records(tuple(records), identical)


def comparisons_in(responses: int) -> float:
    """How many choices a stated ranking counts as, by how many responses it orders, two or more.

    A ranking of m responses is m - 1 choices, each among what is left. They would count in full if they erred
    independently of each other. But one person gave all of them in one moment, so that their errors are alike, and the
    more there are the less each of them adds (`tests/bench/ranking_weight.py`). A ranking that was inferred from
    behaviour counts as one: a single act gave all of it.
    """
    return math.sqrt(responses - 1)


def weighing(records: Iterable[_Record]) -> list[_Record]:
    """Return the records that weigh something. Those of people or sources that are not heard are no evidence."""
    return [record for record in records if record.weight > 0]


def pairs_of(records: Iterable[Record]) -> list[Pair]:
    """Every strict comparison in the records: pairs, and all pairs of each ranking.

    Each of the C(k, 2) pairs of a ranking of k has that part of the ranking's weight.
    """
    found: list[Pair] = []
    for record in records:
        if isinstance(record, Pair):
            found.append(record)
        elif isinstance(record, RankedList):
            ranked = record.responses
            share = record.weight / (len(ranked) * (len(ranked) - 1) / 2)
            found += [
                Pair(record.prompt, better, worse, share, record.event_id, record.tags, record.annotator, record.source)
                for i, better in enumerate(ranked)
                for worse in ranked[i + 1 :]
            ]
    return found


def thumbs_of(records: Iterable[Record]) -> list[Labelled]:
    """The responses judged on their own, without those that were rated in the very middle of the scale."""
    return [record for record in records if isinstance(record, Labelled) and not record.is_undecided]


def source_of(event: feedback_pb2.FeedbackEvent) -> SourceName:
    """Return who or what made a signal; a person, if the signal does not say it."""
    return _SOURCES.get(event.source, "human")


class NoSupport(ValueError):
    """Raised for a signal about responses that says nothing about others; the message is the reason."""


def pair_exposure(shown: feedback_pb2.Shown, responses: int) -> float:
    """Return by how much likelier a uniform rule would have shown a judged pair than the rule that showed it.

    Args:
        shown: How the responses came to be shown.
        responses: How many were shown.

    Raises:
        NoSupport: If the rule never shows some pairs, or the probability of this one is not known.
    """
    if not shown.HasField("chosen"):
        return 1.0
    chosen = shown.chosen
    check_support(chosen)
    if chosen.random_share == 1:
        return 1.0
    if responses != 2:
        raise NoSupport("the shown set is no pair, so that the probability of the judged pair is not known")
    if not chosen.set_probability > 0:
        raise NoSupport("the probability of the judged pair was not recorded")
    return 1 / math.comb(chosen.sampled, 2) / chosen.set_probability


def check_support(chosen: policy_pb2.Chosen) -> None:
    """Raise NoSupport if the rule never shows some of the sampled responses."""
    if chosen.random_share <= 0:
        raise NoSupport("the best responses alone were shown, so that the others had no chance to be judged")


def _known_exposure(event: feedback_pb2.FeedbackEvent) -> float | None:
    """Return the exposure of a choice's pair; None if it is not known, as of a task that was chosen to be answered."""
    if not event.HasField("shown") or (event.HasField("task") and not event.task.is_uniform):
        return None
    try:
        return pair_exposure(event.shown, len(event.responses))
    except NoSupport:
        return None


def _pair(
    prompt: Prompt, chosen: str, rejected: str, about: About, margin: float = 0.0, exposure: float | None = None
) -> list[Record]:
    return [] if chosen == rejected else [Pair(prompt, chosen, rejected, *about, margin=margin, exposure=exposure)]


def _at(responses: Sequence[str], index: int) -> str:
    if index < 0:
        raise IndexError(f"response index {index} is negative")
    return responses[index]
