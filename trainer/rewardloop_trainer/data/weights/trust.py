"""What a person's judgement weighs: by how reliable they are, by whose hand it is, and by what it repeats.

A person who is right with probability a leaves the share 2 a - 1 of the preference in their labels, as `source_weights`
has it for sources. It is also the slope, at a margin of 0, of the likelihood in which the person errs with probability
1 - a (CrowdBT), so that weighing by it is that likelihood as far as small margins go. A person of whom nothing is known
is taken to be right three times in four, and weighs 1. Nobody weighs less than 0: a liar is not heard, and not turned
round either, as that would put training into the liar's hand.

The weights are on the records, so that every algorithm and every gate has the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Self

from rewardloop_trainer.data.preferences import Record

TRUST = "trust.json"  # the file in which a round keeps its estimate
ASSUMED_ACCURACY = 0.75
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Trust:
    """How signals of people are weighed.

    Attributes:
        accuracy: How often each person is right, from 0 to 1.
        by_slice: The same in slices, by person and key=value, where there is enough to tell.
        crowd: The accuracy of a person of whom nothing is known.
        hands: The hand of each id that shares one with others.
        signals: Factors of single signals, by `signal_key`.
        muted: Annotators whose signals weigh nothing because an operator said so, whatever their source is.
    """

    accuracy: Mapping[str, float] = field(default_factory=dict)
    by_slice: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    crowd: float = ASSUMED_ACCURACY
    hands: Mapping[str, str] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    muted: Collection[str] = ()

    def weight(self, person: str, slices: Iterable[str] = ()) -> float:
        """Return what a signal of a person weighs; 1 if it names nobody."""
        if not person:
            return 1.0
        if person in self.muted:
            return 0.0
        of_slices = self.by_slice.get(person, {})
        known = [of_slices[each] for each in slices if each in of_slices]
        return trust_weight(sum(known) / len(known) if known else self.accuracy.get(person, self.crowd))

    def to_json(self) -> str:
        return json.dumps({"format_version": _FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError if it is something else."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop("format_version", None) != _FORMAT_VERSION:
            raise ValueError("this is no file of trust of this version")
        return cls(**{**found, "muted": tuple(found.get("muted", ()))})


def trust_weight(accuracy: float) -> float:
    """Return what a person's signal weighs: from 0, for one who is right no more often than by chance, to 2."""
    return max(0.0, (2 * accuracy - 1) / (2 * ASSUMED_ACCURACY - 1))


def weigh_people(records: Sequence[Record], trust: Trust) -> list[Record]:
    """Return the records in their order, people's weighed, and ids that are one hand under the hand's name.

    Records of other sources keep their weights, as `source_weights` measures those, unless an operator muted them.
    """
    return [
        _weighed(record, trust) if record.source == "human" or record.annotator in trust.muted else record
        for record in records
    ]


def _weighed(record: Record, trust: Trust) -> Record:
    slices = (f"{key}={value}" for key, value in record.tags.items())
    weight = record.weight * trust.weight(record.annotator, slices) * trust.signals.get(record.event_id, 1.0)
    return replace(record, weight=weight, annotator=trust.hands.get(record.annotator, record.annotator))
