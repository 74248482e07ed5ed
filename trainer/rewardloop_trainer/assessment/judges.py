"""What a judge says of many comparisons of answers, as measurements take it, and the type of a model that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.evaluation.answers import Scorer
from rewardloop_trainer.judging.judge import Duel, Judge
from rewardloop_trainer.judging.reward_judge import RewardJudge
from rewardloop_trainer.reward.evaluate import Floats

# Answers each prompt with one text, as an endpoint of a language model does.
TextModel: TypeAlias = Callable[[Sequence[Prompt]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of n comparisons.

    Attributes:
        shares: (n,), how much of each comparison the first answer wins: 1, 0, or 1/2 for a tie, which two orders that
            disagree are as well; NaN without an opinion.
        consistent: The share of the opinions whose winner is the same in both orders: 1 for a judge that reads each
            answer alone; NaN without an opinion.
        first_wins: The mean share that the answer shown first wins over both orders: 1/2 without a bias of place.
        unjudged: How many have no opinion.
    """

    shares: Floats
    consistent: float
    first_wins: float
    unjudged: int


def score_judge(name: str, score: Scorer) -> Judge:
    """Return the judge that prefers the answer with the higher score. An empty answer loses to any other."""
    return RewardJudge(name, score, empty_loses=True)


def judged(judge: Judge, duels: Sequence[Duel]) -> Verdicts:
    """Ask a judge about every duel. It is the judge that asks its model in both orders, if the order may sway it.

    Raises:
        ValueError: If the judge gives another number of opinions than there are duels.
        JudgeError: As `Judge.compare` does.
    """
    said = judge.compare(duels)
    if len(said) != len(duels):
        raise ValueError(f"judge {judge.name}: gave {len(said)} opinions of {len(duels)} comparisons")
    shares = np.array([np.nan if each is None else each.wins for each in said], dtype=np.float64)
    opinions = [each for each in said if each is not None]
    consistent = _mean([float(each.agrees) for each in opinions])
    return Verdicts(shares, consistent, _mean([each.first_shown for each in opinions]), len(said) - len(opinions))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
