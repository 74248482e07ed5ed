"""What measurements take from a judge: the same from a chat model, asked in both orders, and from a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.judges import judged, score_judge
from rewardloop_trainer.assessment.policies.head_to_head import Answers, head_to_head
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.chat_judge import ChatJudge, Voting
from rewardloop_trainer.judging.judge import Answer, Duel, Opinion
from rewardloop_trainer.judging.rubric import Rubric

PROMPT: Prompt = (Turn("user", "q"),)
DUELS = [Duel(PROMPT, "good", "bad"), Duel(PROMPT, "bad", "good")]


class Choosing:
    """A chat model that chooses the response which is called good, or the one that is shown first."""

    name = "chooser"

    def __init__(self, first: float) -> None:
        self.first = first

    def choose(self, messages: Prompt, replies: Sequence[str]) -> list[float]:
        text = messages[1].content
        is_good_first = text.index("\ngood\n") < text.index("\nbad\n")
        to_first = self.first + (1 - self.first) * is_good_first
        return [to_first, 1 - to_first, 0.0]


class Silent:
    """A judge that has no opinion of any duel, or leaves some out."""

    name = "silent"

    def __init__(self, left_out: int = 0) -> None:
        self.left_out = left_out

    def compare(self, duels: Sequence[Duel]) -> list[Opinion | None]:
        return [None] * (len(duels) - self.left_out)

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        return [None] * len(answers)


def chat_judge(first: float) -> ChatJudge:
    return ChatJudge(Choosing(first), Rubric("short", "1", "Prefer the good one."), Voting())


def scores(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
    scores.asked += sum(map(len, texts))  # type: ignore[attr-defined]
    return [[None if not text else float(text == "good") for text in group] for group in texts]


def test_both_orders_of_a_judge_that_prefers_a_place_are_a_tie() -> None:
    found = judged(chat_judge(first=1.0), DUELS)
    assert list(found.shares) == [0.5, 0.5]
    assert (found.consistent, found.first_wins) == (0.0, 1.0)
    fair = judged(chat_judge(first=0.0), DUELS)
    assert list(fair.shares) == [1.0, 0.0]
    assert (fair.consistent, fair.first_wins) == (1.0, 0.5)


def test_a_judge_by_scores_reads_each_answer_once_and_an_empty_one_loses() -> None:
    scores.asked = 0  # type: ignore[attr-defined]
    found = judged(
        score_judge("r", scores), [*DUELS, Duel(PROMPT, "", "bad"), Duel(PROMPT, "good", ""), Duel(PROMPT, "", "")]
    )
    assert list(found.shares) == [1.0, 0.0, 0.0, 1.0, 0.5]
    assert (found.consistent, found.unjudged) == (1.0, 0)
    assert scores.asked == 3  # type: ignore[attr-defined]


def test_no_opinion_is_no_tie() -> None:
    found = judged(Silent(), DUELS)
    assert np.isnan(found.shares).all()
    assert found.unjudged == 2
    with pytest.raises(ValueError, match="gave 1 opinions of 2"):
        judged(Silent(left_out=1), DUELS)


def test_a_chat_model_judges_policies() -> None:
    ours, theirs = (Answers(text, [[text]] * 4, [[len(text)]] * 4) for text in ("good", "bad"))
    found = head_to_head([(Turn("user", f"{i}"),) for i in range(4)], ours, theirs, chat_judge(first=0.1))
    assert (found.win_rate.mean, found.consistent) == (1.0, 1.0)
    assert found.first_wins == pytest.approx(0.55)
    assert found.judge == "chooser/short@1"
