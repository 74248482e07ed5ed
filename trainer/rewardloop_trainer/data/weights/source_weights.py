"""Measures what a judgement of a model, or one that was inferred from behaviour, is worth beside a person's.

Where people and another source judged the same two responses to the same prompt, let a be the share of these judgements
in which the source agrees with a person, and h the share in which two people agree. If judgements are right or wrong
independently, a source that is right with probability q agrees with people who are right with probability p at
2a - 1 = (2q - 1)(2p - 1), and two people at 2h - 1 = (2p - 1)^2. So

    (2a - 1) / (2h - 1) = (2q - 1) / (2p - 1)

says how much of the preference is left in the source's judgements beside people's: the factor by which the mean of
their labels, from -1 to 1, is nearer to 0. Both shares are shrunk towards what is assumed without any data, by
`_ASSUMED` judgements, so that few shared pairs change little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from rewardloop_trainer.data.preferences import SOURCE_WEIGHTS, Pair, Prompt, Record, SourceName, pairs_of

# Two people agree on three pairs in four, where nobody measured it.
_PEOPLE_AGREE = 0.75
_ASSUMED = 50.0


@dataclass(frozen=True, slots=True)
class SourceWeight:
    """The measured weight of a source.

    Attributes:
        weight: What one of its signals is worth beside a person's, from 0 to 1.
        agreement: The share of the compared judgements that agree with a person's; NaN without any.
        compared: How many judgements of the source were compared, each with the people who judged the same pair.
    """

    weight: float
    agreement: float
    compared: float


@dataclass(slots=True)
class _Count:
    agreed: float = 0.0
    compared: float = 0.0

    def add(self, agreed: float, compared: float) -> None:
        """Add the comparisons of one judgement, which count as one together."""
        if compared:
            self.agreed += agreed / compared
            self.compared += 1

    def shrunk(self, assumed: float) -> float:
        return (self.agreed + _ASSUMED * assumed) / (self.compared + _ASSUMED)


def measure_sources(records: Iterable[Record]) -> dict[SourceName, SourceWeight]:
    """Measure the sources that judged pairs which people judged, too.

    Args:
        records: Signals of all sources. A ranking counts by the pairs in it. No model takes part, so that signals that
            are learned from can be measured by as well.

    Returns:
        A weight for each source but people that shares a pair with them.
    """
    by_pair: dict[tuple[Prompt, frozenset[str]], list[Pair]] = defaultdict(list)
    for pair in pairs_of(records):
        by_pair[pair.prompt, frozenset((pair.chosen, pair.rejected))].append(pair)
    people = _Count()
    others: dict[SourceName, _Count] = defaultdict(_Count)
    for pairs in by_pair.values():
        said = {name: [p.chosen for p in pairs if p.source == name] for name in SOURCE_WEIGHTS}
        of_people = combinations((p for p in pairs if p.source == "human"), 2)
        two = [(a, b) for a, b in of_people if not a.annotator or a.annotator != b.annotator]
        people.add(sum(a.chosen == b.chosen for a, b in two), len(two))
        for name, choices in said.items():
            if name != "human":
                for choice in choices:
                    others[name].add(said["human"].count(choice), len(said["human"]))
    h = 2 * people.shrunk(_PEOPLE_AGREE) - 1
    found: dict[SourceName, SourceWeight] = {}
    for name, count in others.items():
        if count.compared:
            a = 2 * count.shrunk((1 + SOURCE_WEIGHTS[name] * h) / 2) - 1  # without data the weight is the prior's
            weight = min(1.0, max(0.0, a / h)) if h > 0 else SOURCE_WEIGHTS[name]
            found[name] = SourceWeight(weight, count.agreed / count.compared, count.compared)
    return found


def weigh_sources(records: Sequence[Record], measured: Mapping[SourceName, SourceWeight]) -> list[Record]:
    """Return the records, in their order, those of a measured source with its weight in place of the assumed one."""
    return [
        replace(each, weight=each.weight * measured[each.source].weight / SOURCE_WEIGHTS[each.source])
        if each.source in measured
        else each
        for each in records
    ]


def source_figures(measured: Mapping[SourceName, SourceWeight]) -> dict[str, float]:
    """What a manifest says of the measured sources."""
    return {
        f"source_{name}_{figure}": value
        for name, each in measured.items()
        for figure, value in (
            ("weight", each.weight),
            ("agreement", each.agreement),
            ("compared", each.compared),
        )
    }
