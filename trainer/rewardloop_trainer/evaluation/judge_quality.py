"""How good a judge is on pairs that people judged too: agreement, consistency, biases and calibration, each bounded.

Prompts are the unit. Every figure has a 95% interval over prompts: that of `ClusteredDifference` for differences, and
that of `ClusteredShare` for shares, so that a share of 1 has an interval too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from rewardloop_trainer.clusters import ClusteredMean, Ints, as_difference, as_share, clustered_mean
from rewardloop_trainer.data.weights.source_weights import SourceWeight, measure_sources, source_key
from rewardloop_trainer.judging.judge import Opinion
from rewardloop_trainer.judging.pairs.candidates import Candidate, as_records

if TYPE_CHECKING:
    from rewardloop_trainer.reward.evaluate import Floats

_ALPHA = 0.025
_BINS = 10


@dataclass(frozen=True, slots=True)
class Bounded:
    """A figure with its 95% interval; all are NaN without data."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with what the judge said of it, and what people did."""

    candidate: Candidate
    opinion: Opinion


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """The measurement of a judge.

    Attributes:
        pairs: Pairs that it judged.
        shared: Those that people judged too.
        agreement: Share of people's choices, averaged over the pairs that the judge decided, that are the judge's.
        consistency: Share of all pairs in which both orders have the same choice.
        first_shown: Share of the votes for the response that was shown first; 1/2 without position bias.
        longer: How much oftener the judge chose the longer response than people did, over the same pairs; 0 is no bias.
        overconfidence: Its mean stated probability of its choice, less the share in which people chose so.
        calibration_error: The mean distance of these two over ten bins of the probability; NaN without data.
        weight: What its signals are worth in the loss; None without shared pairs.
    """

    pairs: int
    shared: int
    agreement: Bounded
    consistency: Bounded
    first_shown: Bounded
    longer: Bounded
    overconfidence: Bounded
    calibration_error: float
    weight: SourceWeight | None

    def is_muted(self, floor: float) -> bool:
        """Whether the weight is shown to be below the floor."""
        return self.weight is not None and self.weight.is_muted(floor)


def measure_judge(name: str, judged: Sequence[Judged]) -> JudgeQuality:
    """Measure a judge by all pairs that it judged.

    Args:
        name: The judge's name.
        judged: The pairs, each once.
    """
    shared = [each for each in judged if each.candidate.people]
    # Pairs on which judge and at least one person made a choice.
    decided = [each for each in shared if each.opinion.wins != 0.5 and _choices(each.candidate)]
    agreed = [_agreed(each) for each in decided]
    stated = [max(each.opinion.probability, 1 - each.opinion.probability) for each in decided]
    unequal = [each for each in decided if len(each.candidate.duel.first) != len(each.candidate.duel.second)]
    gaps = [_longer(each, each.opinion.wins) - _people_longer(each) for each in unequal]
    records = [
        record for each in shared for record in as_records(each.candidate.key, each.candidate, name, each.opinion.wins)
    ]
    return JudgeQuality(
        len(judged),
        len(shared),
        _share(agreed, decided),
        _share([float(each.opinion.agrees) for each in judged], judged),
        _share([each.opinion.first_shown for each in judged], judged),
        _difference(gaps, unequal),
        _difference([s - a for s, a in zip(stated, agreed, strict=True)], decided),
        _calibration_error(np.array(stated), np.array(agreed)),
        measure_sources(records).get(source_key("llm_judge", name)),
    )


def _choices(candidate: Candidate) -> list[float]:
    """What people chose, ties left out."""
    return [each.wins for each in candidate.people if each.wins != 0.5]


def _agreed(each: Judged) -> float:
    return fmean(float(wins == each.opinion.wins) for wins in _choices(each.candidate))


def _longer(each: Judged, wins: float) -> float:
    """1 if the longer response was chosen."""
    duel = each.candidate.duel
    return float((len(duel.first) > len(duel.second)) == (wins > 0.5))


def _people_longer(each: Judged) -> float:
    return fmean(_longer(each, wins) for wins in _choices(each.candidate))


def _clusters(judged: Sequence[Judged]) -> Ints:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(j.candidate.duel.prompt, len(numbers)) for j in judged], dtype=np.int64)


def _share(values: Sequence[float], judged: Sequence[Judged]) -> Bounded:
    if not values:
        return Bounded(math.nan, math.nan, math.nan)
    data = np.array(values, dtype=np.float64)
    return _bounded(as_share(clustered_mean(data, np.ones(len(data)), _clusters(judged))))


def _difference(values: Sequence[float], judged: Sequence[Judged]) -> Bounded:
    if not values:
        return Bounded(math.nan, math.nan, math.nan)
    data = np.array(values, dtype=np.float64)
    return _bounded(as_difference(clustered_mean(data, np.ones(len(data)), _clusters(judged))))


def _bounded(found: ClusteredMean) -> Bounded:
    return Bounded(found.mean, found.lower(_ALPHA), found.upper(_ALPHA))


def _calibration_error(stated: Floats, agreed: Floats) -> float:
    if not len(stated):
        return math.nan
    bins = np.minimum((stated * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float((stated[bins == b] - agreed[bins == b]).sum())) for b in range(_BINS)]
    return sum(gaps) / len(stated)
