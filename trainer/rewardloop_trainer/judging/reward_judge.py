"""A judge by the scores of a reward model, which has no position bias because it reads each response alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.judge import NEITHER, Answer, Duel, Opinion, choice_of

# Prompts, and the responses to each: their scores in the same shape, None for a response that cannot be scored.
Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[float | None]]]


class RewardJudge:
    """A `Judge` that takes the difference of two scores as the log odds of a preference (Bradley-Terry)."""

    def __init__(self, name: str, score: Score, tie_margin: float = 0.0) -> None:
        """Take the scores.

        Args:
            name: Names the model with its version.
            score: Gives the scores of responses.
            tie_margin: Scores that differ by no more than this are a tie.
        """
        self._name, self._score, self._tie_margin = name, score, tie_margin

    @property
    def name(self) -> str:
        return self._name[:128]

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        """Compare the scores; see `Judge.compare`."""
        scored = self._score([duel.prompt for duel in duels], [(duel.first, duel.second) for duel in duels])
        return [self._opinion(first, second) for first, second in scored]

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the probability that each response is better than one with a score of 0; see `Judge.rate`."""
        scored = self._score([answer.prompt for answer in answers], [(answer.response,) for answer in answers])
        return [None if score is None else _sigmoid(score) for (score,) in scored]

    def _opinion(self, first: float | None, second: float | None) -> Opinion | None:
        if first is None or second is None:
            return None
        margin = first - second
        choice = NEITHER if abs(margin) <= self._tie_margin else choice_of(_sigmoid(margin))
        return Opinion(choice, _sigmoid(margin))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
