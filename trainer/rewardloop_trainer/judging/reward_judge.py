"""A judge by the scores of a reward model, which has no position bias because it reads each response alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.judge import NEITHER, Answer, Duel, Opinion, choice_of

# Prompts, and the responses to each: their scores in the same shape, None for a response that cannot be scored.
Score: TypeAlias = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[float | None]]]


class RewardJudge:
    """A `Judge` that takes the difference of two scores as the log odds of a preference (Bradley-Terry)."""

    def __init__(self, name: str, score: Score, tie_margin: float = 0.0, *, empty_loses: bool = False) -> None:
        """Take the scores.

        Args:
            name: Names the model with its version.
            score: Gives the scores of responses.
            tie_margin: Scores that differ by no more than this are a tie.
            empty_loses: Whether a response without a score, which is an empty one, loses to any other and ties with
                another empty one. Otherwise there is no opinion of it.
        """
        self._name, self._score, self._tie_margin, self._empty_loses = name, score, tie_margin, empty_loses

    @property
    def name(self) -> str:
        return self._name[:128]

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        """Compare the scores, of which each response to a prompt gets one; see `Judge.compare`."""
        texts: dict[Prompt, dict[str, None]] = {}
        for duel in duels:
            texts.setdefault(duel.prompt, {}).update(dict.fromkeys((duel.first, duel.second)))
        groups = [list(group) for group in texts.values()]
        known = {
            prompt: dict(zip(group, scores, strict=True))
            for prompt, group, scores in zip(texts, groups, self._score(list(texts), groups), strict=True)
        }
        return [self._opinion(known[duel.prompt][duel.first], known[duel.prompt][duel.second]) for duel in duels]

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the probability that each response is better than one with a score of 0; see `Judge.rate`."""
        scored = self._score([answer.prompt for answer in answers], [(answer.response,) for answer in answers])
        return [None if score is None else float(sigmoid(np.asarray(score))) for (score,) in scored]

    def _opinion(self, first: float | None, second: float | None) -> Opinion | None:
        if first is None or second is None:
            wins = 0.5 if first is second else float(second is None)
            return Opinion(choice_of(wins), wins) if self._empty_loses else None
        margin = first - second
        wins = float(sigmoid(np.asarray(margin)))
        return Opinion(NEITHER if abs(margin) <= self._tie_margin else choice_of(wins), wins)
