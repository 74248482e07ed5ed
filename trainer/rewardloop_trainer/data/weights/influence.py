"""Bounds how much of what a model learns can come from one person, and from one source other than people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, TiedPair

Judged = TypeVar("Judged", bound=Pair | TiedPair | RankedList | Labelled)


def cap_influence(judged: Sequence[Judged], most_share: float, most_source_share: float = 1.0) -> list[Judged]:
    """Scale down the weights of people and sources that would have too much, and return the records in their order.

    No person has more than ``most_share`` of the total, or than twice an equal share if that is more, as with a few
    people. Ids of one hand are one person (`trust.weigh_people`). Records without an annotator keep their weights.

    A source other than people has at most ``most_source_share`` of the total, as long as people say anything.

    Args:
        judged: The records of a run.
        most_share: From 0 to 1; 1: no cap.
        most_source_share: From 0 to 1; 1: no cap.
    """
    return _cap_people(_cap_sources(judged, most_source_share), most_share)


def _cap_sources(judged: Sequence[Judged], most_share: float) -> Sequence[Judged]:
    of_source: dict[str, float] = {}
    for each in judged:
        of_source[each.source] = of_source.get(each.source, 0.0) + each.weight
    people = of_source.pop("human", 0.0)
    scales = _scales(of_source, people, most_share) if people > 0 else {}
    return [replace(each, weight=each.weight * scales.get(each.source, 1.0)) for each in judged] if scales else judged


def _cap_people(judged: Sequence[Judged], most_share: float) -> list[Judged]:
    of_person: dict[str, float] = {}
    for each in judged:
        if each.annotator and each.weight > 0:  # who is not heard takes nothing from the equal shares of the others
            of_person[each.annotator] = of_person.get(each.annotator, 0.0) + each.weight
    unnamed = sum(each.weight for each in judged if not each.annotator)
    scales = _scales(of_person, unnamed, max(most_share, 2 / max(len(of_person), 1)))
    return [
        replace(each, weight=each.weight * scales[each.annotator]) if each.annotator in scales else each
        for each in judged
    ]


def _scales(of_person: Mapping[str, float], unnamed: float, share: float) -> dict[str, float]:
    """Factors that leave each person at most ``share`` of what all have together afterwards."""
    if share >= 1:
        return {}
    # With the k heaviest people at the cap c: c = share * (k * c + rest), so c = share * rest / (1 - share * k).
    # Someone above c has at most the rest, so that share * (k + 1) is below 1.
    by_weight = sorted(of_person.items(), key=lambda item: -item[1])
    rest = unnamed + sum(of_person.values())
    cap = share * rest
    for k, (_, weight) in enumerate(by_weight, 1):
        if weight <= cap:
            break
        rest -= weight
        cap = share * rest / (1 - share * k)
    return {person: cap / weight for person, weight in by_weight if weight > cap}
