"""How right, how sure and how fond of length a reward model is in each slice, on what it has not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.audit.judged import Judged
from rewardloop_trainer.audit.leanings import ALPHA
from rewardloop_trainer.clusters import (
    ClusteredDifference,
    ClusteredMean,
    as_difference,
    as_share,
    clustered_mean,
)
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.likelihood import best_slope, calibration_error
from rewardloop_trainer.reports.parts import Measured
from rewardloop_trainer.reward.evaluate import Floats, correctness

LEAST_PAIRS = 10


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Figures of a model on the comparisons of a slice.

    Attributes:
        pairs: The comparisons.
        accuracy: Share that the model orders as people did, with its interval over prompts.
        length_baseline: What always taking the longer response would reach.
        beyond_length: By how much its accuracy is above that baseline, or above chance if chance is better.
        accuracy_shorter_won: Its accuracy where the shorter response was chosen.
        longer_beyond_people: By how much more often than people it prefers the longer response.
        calibration_error: How far its confidence and accuracy are apart, from 0 to 1.
        slope: 1 if its margins are true log odds, below 1 if it is too sure.
        fondness: ``longer_beyond_people`` with its error.
    """

    pairs: int
    accuracy: Measured
    length_baseline: float
    beyond_length: ClusteredDifference
    accuracy_shorter_won: float
    longer_beyond_people: Measured
    calibration_error: float
    slope: float
    fondness: ClusteredDifference

    @property
    def is_testable(self) -> bool:
        """Whether there are enough comparisons for the intervals to hold."""
        return self.pairs >= LEAST_PAIRS

    def is_below_baseline(self, alpha: float) -> bool:
        """Whether always taking the longer response, or chance, surely does better; ``alpha``: how often by chance."""
        return self.is_testable and self.beyond_length.upper(alpha) < 0

    def is_fonder_than_people(self, least: float, alpha: float) -> bool:
        """Whether it surely prefers the longer response by more than ``least`` more often; ``alpha``: as above."""
        return self.is_testable and self.fondness.lower(alpha) > least


def unseen_pairs(judged: Sequence[Judged]) -> tuple[list[Pair], list[Judged]]:
    """Return the comparisons that the model has not learned from, and the signal of each."""
    found = [(pair, each) for each in judged if each.is_unseen for pair in each.pairs]
    return [pair for pair, _ in found], [each for _, each in found]


def measure_model(pairs: Sequence[Pair], margins: Floats) -> ModelFigures:
    """Measure a model's margins (pairs,), each the chosen response's logit less the rejected one's."""
    weights = np.array([pair.weight for pair in pairs], dtype=np.float64)
    numbers: dict[bytes, int] = {}
    clusters = np.array([numbers.setdefault(prompt_key(pair.prompt), len(numbers)) for pair in pairs], dtype=np.int64)
    right = correctness(margins)
    lengths = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    longer_won = np.where(lengths == 0, 0.5, lengths > 0)
    # Of a pair in which the longer response was chosen, the model prefers the longer one if it is right.
    prefers_longer = np.where(lengths == 0, 0.5, np.where(lengths > 0, right, 1 - right))
    shorter = right[lengths < 0]
    baseline = float(weights @ longer_won / weights.sum()) if weights.sum() > 0 else math.nan
    fondness = as_difference(clustered_mean(prefers_longer - longer_won, weights, clusters))
    return ModelFigures(
        len(pairs),
        _measured(as_share(clustered_mean(right, weights, clusters)), len(pairs)),
        baseline,
        as_difference(clustered_mean(right - (longer_won if baseline > 0.5 else 0.5), weights, clusters)),
        float(shorter.mean()) if len(shorter) else math.nan,
        _measured(fondness, len(pairs)),
        calibration_error(margins, weights),
        best_slope(margins, np.ones(len(margins)), weights) if len(margins) else math.nan,
        fondness,
    )


def _measured(found: ClusteredMean, pairs: int) -> Measured:
    if pairs < LEAST_PAIRS:
        return Measured(found.mean, math.nan, math.nan)
    return Measured(found.mean, found.lower(ALPHA), found.upper(ALPHA))
