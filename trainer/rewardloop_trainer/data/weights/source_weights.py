"""Measures what a judgement of a model, or one that was inferred from behaviour, is worth beside a person's.

Where people and another source judged the same two responses to the same prompt, let a be the share of these judgements
in which the source agrees with a person, and h the share in which two people agree. If judgements are right or wrong
independently, a source that is right with probability q agrees with people who are right with probability p at
2a - 1 = (2q - 1)(2p - 1), and two people at 2h - 1 = (2p - 1)^2. So

    (2a - 1) / (2h - 1) = (2q - 1) / (2p - 1)

says how much of the preference is left in the source's judgements beside people's: the factor by which the mean of
their labels, from -1 to 1, is nearer to 0. Both shares are shrunk towards what is assumed without any data, by
`_ASSUMED` judgements, so that few shared pairs change little, but never beyond the interval of what was measured.

Every judge is measured apart, by the id that its signals have as annotator, and all judges together for those without
an id of their own. A source is muted if its weight is shown to be below a floor: if the upper end of the interval is.
The interval is of the weight without shrinking a, by the sandwich over prompts. With a floor of 0.2, a source whose
weight is 0.2 is muted in about 2.5% of the measurements, one that judges at random in most of them from 800 shared
pairs on, and one that errs on purpose from 100 on (`pytest tests/unit/trainer/test_judge_weights.py -s`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import NormalDist

from rewardloop_trainer.data.preferences import SOURCE_WEIGHTS, Pair, Prompt, Record, SourceName, pairs_of

# Two people agree on three pairs in four, where nobody measured it.
_PEOPLE_AGREE = 0.75
_ASSUMED = 50.0
# With shared pairs of fewer prompts nothing is said about the interval.
_LEAST_PROMPTS = 20
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class SourceWeight:
    """The measured weight of a source.

    Attributes:
        weight: What one of its signals is worth beside a person's, from 0 to 1.
        agreement: The share of the compared judgements that agree with a person's; NaN without any.
        compared: How many judgements of the source were compared, each with the people who judged the same pair.
        lower: Lower end of the weight's 95% interval, from 0 to 1.
        upper: Upper end. The interval is from 0 to 1 if the pairs are of fewer than 20 prompts.
    """

    weight: float
    agreement: float
    compared: float
    lower: float = 0.0
    upper: float = 1.0

    def is_muted(self, floor: float) -> bool:
        """Whether its weight is shown to be below ``floor``, so that its signals are not learned from."""
        return self.upper < floor


@dataclass(slots=True)
class _Count:
    """Comparisons by prompt: the sum of their agreement, and their number."""

    by_prompt: dict[Prompt, tuple[float, float]] = field(default_factory=dict)

    def add(self, prompt: Prompt, agreed: float, compared: float) -> None:
        """Add the comparisons of one judgement, which count as one together."""
        if compared:
            before = self.by_prompt.get(prompt, (0.0, 0.0))
            self.by_prompt[prompt] = before[0] + agreed / compared, before[1] + 1

    @property
    def agreed(self) -> float:
        return math.fsum(agreed for agreed, _ in self.by_prompt.values())

    @property
    def compared(self) -> float:
        return sum(compared for _, compared in self.by_prompt.values())

    def shrunk(self, assumed: float) -> float:
        return (self.agreed + _ASSUMED * assumed) / (self.compared + _ASSUMED)


def source_key(source: SourceName, annotator: str) -> str:
    """Return the key of a judge's measurement: that of its source, if it has no id of its own."""
    return f"{source}/{annotator}" if source == "llm_judge" and annotator else source


def measure_sources(records: Iterable[Record]) -> dict[str, SourceWeight]:
    """Measure the sources that judged pairs which people judged, too.

    Args:
        records: Signals of all sources. A ranking counts by the pairs in it. People's signals without weight, such as
            one that its person has changed since, say nothing. No model takes part, so that signals that are learned
            from can be measured by as well.

    Returns:
        A weight for each source but people, and for each judge by `source_key`, that shares a pair with people.
    """
    by_pair: dict[tuple[Prompt, frozenset[str]], list[Pair]] = defaultdict(list)
    for pair in pairs_of(records):
        by_pair[pair.prompt, frozenset((pair.chosen, pair.rejected))].append(pair)
    people = _Count()
    others: dict[str, _Count] = defaultdict(_Count)
    for (prompt, _), pairs in by_pair.items():
        of_people = [pair for pair in pairs if pair.source == "human" and pair.weight > 0]
        if not of_people:
            continue
        two = [(a, b) for a, b in combinations(of_people, 2) if not a.annotator or a.annotator != b.annotator]
        people.add(prompt, sum(a.chosen == b.chosen for a, b in two), len(two))
        said = [pair.chosen for pair in of_people]
        for pair in pairs:
            if pair.source != "human":
                for key in {pair.source, source_key(pair.source, pair.annotator)}:
                    others[key].add(prompt, said.count(pair.chosen), len(said))
    return {key: _weight(count, people, _assumed_of(key)) for key, count in others.items()}


def _weight(count: _Count, people: _Count, assumed: float) -> SourceWeight:
    found = SourceWeight(assumed, count.agreed / count.compared, count.compared)
    h = 2 * people.shrunk(_PEOPLE_AGREE) - 1
    if h <= 0:
        return found
    a = 2 * count.shrunk((1 + assumed * h) / 2) - 1  # without data the weight is the prior's
    weight = min(1.0, max(0.0, a / h))
    if len(count.by_prompt) < _LEAST_PROMPTS:
        return replace(found, weight=weight)
    ratio = (2 * found.agreement - 1) / h
    reach = _Z * _error(count, people, ratio, h)
    lower, upper = (min(1.0, max(0.0, end)) for end in (ratio - reach, ratio + reach))
    return replace(found, weight=min(upper, max(lower, weight)), lower=lower, upper=upper)


def _error(count: _Count, people: _Count, ratio: float, h: float) -> float:
    """The standard error of (2a - 1) / (2h - 1): each prompt's influence on it, by the linearised ratio."""
    total, of_people = count.compared, people.compared + _ASSUMED
    a, two_agree = count.agreed / total, people.shrunk(_PEOPLE_AGREE)
    # One judgement more that is unlike the others keeps the error above 0 where all are alike.
    squares = (2 / (h * (total + 2))) ** 2 if a in (0.0, 1.0) else 0.0
    for prompt in count.by_prompt.keys() | people.by_prompt.keys():
        agreed, compared = count.by_prompt.get(prompt, (0.0, 0.0))
        same, pairs = people.by_prompt.get(prompt, (0.0, 0.0))
        of_a = (agreed - a * compared) / total
        of_h = (same - two_agree * pairs) / of_people
        squares += (2 * (of_a - ratio * of_h) / h) ** 2
    n = len(count.by_prompt)
    return math.sqrt(squares * n / (n - 1))


def _assumed_of(key: str) -> float:
    for name, weight in SOURCE_WEIGHTS.items():
        if key.partition("/")[0] == name:
            return weight
    raise KeyError(key)


def weigh_sources(records: Sequence[Record], measured: Mapping[str, SourceWeight], floor: float = 0.0) -> list[Record]:
    """Return the records, in their order, those of a measured source with its weight in place of the assumed one.

    Args:
        records: Signals of all sources.
        measured: What `measure_sources` found. A judge that was not measured has the weight of all judges together.
        floor: The signals of a source whose weight is shown to be below it have weight 0.
    """

    def weighed(record: Record) -> Record:
        found = measured.get(source_key(record.source, record.annotator)) or measured.get(record.source)
        if found is None:
            return record
        weight = 0.0 if found.is_muted(floor) else found.weight
        return replace(record, weight=record.weight * weight / SOURCE_WEIGHTS[record.source])

    return [weighed(record) for record in records]


def muted_sources(measured: Mapping[str, SourceWeight], floor: float) -> list[str]:
    """Return the keys of the sources that are muted, judges by their ids."""
    return sorted(key for key, found in measured.items() if found.is_muted(floor))


def source_figures(measured: Mapping[str, SourceWeight]) -> dict[str, float]:
    """What a manifest says of the measured sources and judges."""
    return {
        f"source_{key}_{figure}": value
        for key, each in measured.items()
        for figure, value in (
            ("weight", each.weight),
            ("weight_lower", each.lower),
            ("weight_upper", each.upper),
            ("agreement", each.agreement),
            ("compared", each.compared),
        )
    }
