"""All versions of a policy on one scale: a Bradley-Terry ladder with intervals.

Each version has a strength in nats, and a version beats another one with probability sigmoid of their difference. The
strengths are fitted to all comparisons at once; those of one prompt depend on each other, so that intervals are taken
over prompts ("sandwich"). The first version has strength 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rewardloop_trainer.assessment.judges import judged
from rewardloop_trainer.assessment.measures import ALPHA
from rewardloop_trainer.assessment.policies.head_to_head import Answers
from rewardloop_trainer.clusters import Ints, effective_clusters, t_quantile
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.likelihood import fit_logistic, logistic_errors
from rewardloop_trainer.judging.judge import Duel, Judge
from rewardloop_trainer.reports.parts import Measured
from rewardloop_trainer.reward.evaluate import Floats

ELO_POINTS = 400 / math.log(10)  # of one nat
_LEAST_FREEDOM = 2.0


@dataclass(frozen=True, slots=True)
class Ladder:
    """The strengths of versions.

    Attributes:
        names: The versions, in the order in which they were given.
        strengths: Each one's strength above the first one's, in nats.
        wins: (versions, versions), what the row's version wins against the column's; NaN on the diagonal.
        comparisons: How many comparisons had a verdict.
    """

    names: tuple[str, ...]
    strengths: tuple[Measured, ...]
    wins: Floats
    comparisons: int


def climb(prompts: Sequence[Prompt], versions: Sequence[Answers], judge: Judge) -> Ladder:
    """Let every two versions meet on every prompt, answer by answer, and fit the ladder.

    Raises:
        ValueError: If there are fewer than two versions, or as `judges.judged` does.
    """
    if len(versions) < 2:
        raise ValueError("a ladder needs two versions or more")
    comparisons: list[Duel] = []
    meetings: list[tuple[int, int, int]] = []
    for one, other in combinations(range(len(versions)), 2):
        for i, prompt in enumerate(prompts):
            for a, b in zip(versions[one].texts[i], versions[other].texts[i], strict=False):
                comparisons.append(Duel(prompt, a, b))
                meetings.append((one, other, i))
    shares = judged(judge, comparisons).shares
    known = np.isfinite(shares)
    first, second, of = (np.array(column, dtype=np.int64)[known] for column in zip(*meetings, strict=True))
    return fit_ladder([version.name for version in versions], shares[known], first, second, of)


def fit_ladder(names: Sequence[str], shares: Floats, first: Ints, second: Ints, prompts: Ints) -> Ladder:
    """Fit strengths to comparisons.

    Args:
        names: The versions.
        shares: (n,), how much of each comparison its first version won, in [0, 1].
        first: (n,), the place of the first version among ``names``.
        second: (n,), that of the second one.
        prompts: (n,), the number of the prompt.
    """
    count, n = len(names), len(shares)
    columns = np.zeros((n, count))
    columns[np.arange(n), first] += 1
    columns[np.arange(n), second] -= 1
    columns = columns[:, 1:]  # the first version's strength is 0
    beta = fit_logistic(columns, shares, np.full(n, 1 / max(n, 1)), np.zeros(count - 1))
    errors = logistic_errors(columns, shares, beta, prompts)
    freedom = max(effective_clusters(np.ones(n), prompts) - 1, _LEAST_FREEDOM)
    reach = t_quantile(1 - ALPHA, freedom) * errors
    strengths = [Measured(0.0, 0.0, 0.0)]
    strengths += [Measured(float(b), float(b - r), float(b + r)) for b, r in zip(beta, reach, strict=True)]
    return Ladder(tuple(names), tuple(strengths), _win_table(count, shares, first, second), n)


def _win_table(count: int, shares: Floats, first: Ints, second: Ints) -> Floats:
    sums, sizes = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(sums, (first, second), shares)
    np.add.at(sums, (second, first), 1 - shares)
    for pair in ((first, second), (second, first)):
        np.add.at(sizes, pair, 1.0)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
    return found
