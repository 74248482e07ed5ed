"""What becomes of an independent judge's score as ever better answers by the reward model are chosen.

Of N answers to a prompt, the best of n by the reward model is chosen, for n from 1 to N. The reward model's score
always rises with n. Where the judge's falls, the reward model is over-optimised. Best-of-n is log n - (n - 1) / n nats
away from the policy that gave the answers (Stiennon et al. 2020; Gao et al. 2023; an upper bound where answers repeat).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardloop_trainer.assessment.measures import mean_of
from rewardloop_trainer.assessment.policies.contender import AnswersInFile
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.reward.evaluate import Floats


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of n answers by the reward model.

    Attributes:
        n: How many answers it is the best of.
        kl: How far that is from the policy that gave them, in nats.
        reward: The reward model's score, in deviations of it over all answers, from the mean of each prompt.
        judge: The judge's score, in the same way.
    """

    n: int
    kl: float
    reward: ClusteredMean
    judge: ClusteredMean


@dataclass(frozen=True, slots=True)
class OverOptimisation:
    """The curve of some prompts, and what the judge's score loses from its peak to the end of it."""

    curve: tuple[BestOf, ...]
    peak: int
    loss: ClusteredMean
    prompts: int

    @property
    def is_shown(self) -> bool:
        """Whether the judge's score is shown to fall, by a one-sided test at 2.5%."""
        return self.loss.lower(0.025) > 0


def scores_of(score: Scorer, said: AnswersInFile, most: int) -> list[Floats]:
    """Return the scores of the answers to the first ``most`` prompts, (N,) each; NaN for an answer without a score."""
    prompts = said.prompts[:most]
    scores = score(prompts, said.answer(prompts).texts)
    return [np.array([np.nan if each is None else each for each in group]) for group in scores]


def over_optimisation(rewards: Sequence[Floats], judged: Sequence[Floats]) -> OverOptimisation | None:
    """Measure the curve at n = 1, 2, 4 .. N.

    The expected score of the best of n is computed over all choices of n among the N answers, and not sampled.

    Args:
        rewards: The reward model's scores of the answers to each prompt, (N,) each.
        judged: The judge's scores of the same answers.

    Returns:
        The curve; None if no prompt has two answers that both scored.
    """
    usable = [
        (r[kept], j[kept])
        for r, j in zip(rewards, judged, strict=True)
        if (kept := np.isfinite(r) & np.isfinite(j)).sum() >= 2
    ]
    if not usable:
        return None
    most = min(len(r) for r, _ in usable)
    deviations = [_deviation([each[side] for each in usable]) for side in (0, 1)]
    sizes = [2**i for i in range(int(math.log2(most)) + 1)]
    sizes += [most] if sizes[-1] != most else []
    values = np.array(
        [[[_best_of(r, side, n) for n in sizes] for side in (r, j)] for r, j in usable]
    )  # (prompts, 2, sizes), from each prompt's mean
    clusters = np.arange(len(usable))
    scaled = values / np.array(deviations)[None, :, None]
    curve = tuple(
        BestOf(n, math.log(n) - (n - 1) / n, mean_of(scaled[:, 0, i], clusters), mean_of(scaled[:, 1, i], clusters))
        for i, n in enumerate(sizes)
    )
    peak = int(np.argmax([point.judge.mean for point in curve]))
    loss = mean_of(scaled[:, 1, peak] - scaled[:, 1, -1], clusters)
    return OverOptimisation(curve, curve[peak].n, loss, len(usable))


def _best_of(rewards: Floats, values: Floats, n: int) -> float:
    """The expected value of the best of n by reward, less the mean value, over all subsets of n answers."""
    order = np.argsort(rewards, kind="stable")
    of = math.comb(len(rewards), n)
    chances = np.array([math.comb(rank, n - 1) / of for rank in range(len(rewards))])
    # Equal rewards share their chances, so that their order does not matter.
    _, groups = np.unique(rewards[order], return_inverse=True)
    shared = np.bincount(groups, weights=chances) / np.bincount(groups)
    return float(shared[groups] @ values[order] - values.mean())


def _deviation(groups: Sequence[Floats]) -> float:
    """The pooled deviation of scores from the mean of their prompt; 1 if all are equal."""
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(squares / freedom) if squares > 0 else 1.0
