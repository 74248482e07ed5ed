"""How right, how sure and how fond of length a reward model is in each slice, on what it has not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.audit.judged import Judged
from rewardloop_trainer.audit.leanings import ALPHA
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.data.split import prompt_key
from rewardloop_trainer.evaluation.clusters import clustered_mean
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
        accuracy_shorter_won: Its accuracy where the shorter response was chosen.
        longer_beyond_people: By how much more often than people it prefers the longer response.
        calibration_error: How far its confidence and accuracy are apart, from 0 to 1.
        slope: 1 if its margins are true log odds, below 1 if it is too sure.
    """

    pairs: int
    accuracy: Measured
    length_baseline: float
    accuracy_shorter_won: float
    longer_beyond_people: Measured
    calibration_error: float
    slope: float


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
    return ModelFigures(
        len(pairs),
        _mean(right, weights, clusters),
        float(weights @ longer_won / weights.sum()) if weights.sum() > 0 else math.nan,
        float(shorter.mean()) if len(shorter) else math.nan,
        _mean(prefers_longer - longer_won, weights, clusters),
        calibration_error(margins, weights),
        best_slope(margins, np.ones(len(margins)), weights) if len(margins) else math.nan,
    )


def _mean(values: Floats, weights: Floats, clusters: object) -> Measured:
    found = clustered_mean(values, weights, np.asarray(clusters, dtype=np.int64))
    if len(values) < LEAST_PAIRS:
        return Measured(found.mean, math.nan, math.nan)
    return Measured(found.mean, found.lower(ALPHA), found.upper(ALPHA))
