"""What the policy's gate lets through, on answers made up for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewardloop_trainer.evaluation.policy_gate import (
    Answered,
    Fluency,
    bootstrap_interval,
    distinct_2,
    judge_policy,
    repeated_4,
    win_share,
)
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.settings import PolicyGateLimits

LIMITS = PolicyGateLimits.model_validate({})
LIVE = Answered("you can hold the button", tokens=10, is_truncated=False, score=0.0)
BETTER = Answered("please hold the small button", tokens=11, is_truncated=False, score=1.0, log_ratio=2.0)


def judge(candidate: Answered, *, live: Answered = LIVE, prompts: int = 20) -> Verdict:
    return judge_policy([[candidate, candidate]] * prompts, [[live, live]] * prompts, LIMITS)


def test_a_better_policy_near_the_live_one_passes() -> None:
    verdict = judge(BETTER)
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.figures["gate_win_rate"] == 1.0
    assert verdict.figures["gate_kl"] == pytest.approx(2.0)
    assert verdict.figures["gate_length_ratio"] == pytest.approx(1.1)
    assert verdict.figures["gate_candidate_reward"] == 1.0


def test_an_equal_policy_wins_half_and_does_not_pass() -> None:
    verdict = judge(replace(BETTER, score=0.0))
    assert verdict.figures["gate_win_rate"] == 0.5
    assert not verdict.passed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"log_ratio": 31.0}, "KL"),
        ({"log_ratio": math.nan}, "KL"),
        ({"tokens": 21}, "times as long"),
        ({"tokens": 4}, "times as long"),
        ({"is_truncated": True}, "without an end"),
        ({"text": "go go go go go go go go go"}, "distinct-2"),
        ({"text": "go go go go go go go go go"}, "repeated phrases"),
        ({"text": " ", "score": None}, "empty"),
    ],
)
def test_each_collapse_is_refused_by_its_rule(change: dict[str, object], word: str) -> None:
    collapsed = replace(BETTER, **change)  # type: ignore[arg-type]
    varied = [replace(LIVE, text=f"{word} number {i} is another answer") for i in range(20)]
    verdict = judge_policy([[collapsed]] * 20, [[a] for a in varied], LIMITS)
    assert not verdict.passed
    assert any(word in reason for reason in verdict.reasons)


def test_an_empty_answer_loses_to_any_other_and_ties_with_an_empty_one() -> None:
    empty = Answered("", tokens=1, is_truncated=False, score=None)
    assert judge_policy([[empty]], [[replace(LIVE, score=-100.0)]], LIMITS).figures["gate_win_rate"] == 0.0
    assert judge_policy([[empty]], [[empty]], LIMITS).figures["gate_win_rate"] == 0.5


def test_win_rate_counts_every_pair_of_answers_of_a_prompt() -> None:
    candidate = [[replace(BETTER, score=s) for s in (1.0, 3.0)]]
    live = [[replace(LIVE, score=s) for s in (0.0, 2.0, 3.0)]]
    # 1 beats 0; 3 beats 0 and 2 and ties 3: 3.5 of 6.
    assert judge_policy(candidate, live, LIMITS).figures["gate_win_rate"] == pytest.approx(3.5 / 6)


def test_interval_is_clustered_by_prompt() -> None:
    """A hundred equal answers to each of four prompts are four pieces of evidence, not four hundred."""
    wins, losses = replace(BETTER, score=1.0), replace(BETTER, score=-1.0)
    few = judge_policy([[wins], [wins], [wins], [losses]], [[LIVE]] * 4, LIMITS).figures
    many = judge_policy([[wins] * 10, [wins] * 10, [wins] * 10, [losses] * 10], [[LIVE] * 10] * 4, LIMITS).figures
    for name in ("gate_win_rate", "gate_win_rate_lower", "gate_win_rate_upper"):
        assert few[name] == many[name]
    assert few["gate_win_rate"] == 0.75
    assert few["gate_win_rate_lower"] <= 0.25


def test_bootstrap_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(size=400)
    lower, upper = bootstrap_interval(values, seed=0)
    expected = 1.96 * values.std() / 20
    assert lower == pytest.approx(values.mean() - expected, abs=0.01)
    assert upper == pytest.approx(values.mean() + expected, abs=0.01)


def test_without_a_prompt_nothing_passes() -> None:
    verdict = judge_policy([], [], LIMITS)
    assert not verdict.passed
    assert verdict.reasons


def test_an_independent_judge_decides_and_scores_are_told_beside_it() -> None:
    """The scores call every answer better; the judge, which the update did not see, calls it worse."""
    answers = [[BETTER]] * 20, [[LIVE]] * 20
    verdict = judge_policy(*answers, LIMITS, judged=[0.25] * 20)
    assert verdict.figures["gate_win_rate"] == verdict.figures["gate_win_rate_upper"] == 0.25
    assert verdict.figures["gate_score_win_rate"] == 1.0
    assert [reason for reason in verdict.reasons if "win rate" in reason]
    assert judge_policy(*answers, LIMITS, judged=[1.0] * 20).passed
    with pytest.raises(ValueError, match="judges them all"):
        judge_policy(*answers, LIMITS, judged=[1.0])


def test_win_rate_that_may_be_chance_is_refused_where_the_interval_counts() -> None:
    """Twelve of twenty: 0.6, and its interval reaches below one half."""
    candidate = [[replace(BETTER, score=1.0 if i < 12 else -1.0)] for i in range(20)]
    live = [[LIVE]] * 20
    assert judge_policy(candidate, live, LIMITS).passed
    strict = LIMITS.model_copy(update={"least_win_rate_lower": 0.5})
    verdict = judge_policy(candidate, live, strict)
    assert verdict.figures["gate_win_rate_lower"] < 0.5
    assert any("95% interval" in reason for reason in verdict.reasons)
    assert judge_policy([[BETTER]] * 20, live, strict).passed


def test_alignment_tax_is_bounded_by_perplexity_of_held_out_texts() -> None:
    """e^(2.4 - 2) is 1.49 and e^(2.42 - 2) 1.52; the bound is 1.5."""
    answers = [[BETTER]] * 20, [[LIVE]] * 20
    affordable = judge_policy(*answers, LIMITS, fluency=Fluency(candidate=2.4, live=2.0))
    assert affordable.passed
    assert affordable.figures["gate_perplexity_ratio"] == pytest.approx(1.4918, abs=1e-4)
    for candidate in (2.42, math.nan):
        verdict = judge_policy(*answers, LIMITS, fluency=Fluency(candidate, live=2.0))
        assert any("perplexity" in reason for reason in verdict.reasons)


def test_win_share_of_empty_answers() -> None:
    assert win_share([None], [None]) == 0.5
    assert win_share([None, 0.0], [-5.0]) == 0.5


def test_repeated_4_counts_runs_of_words_that_a_text_has_said_before() -> None:
    # a b c d, b c d a, c d a b, d a b c, a b c d: one of five again.
    assert repeated_4(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repeated_4(["a b c d", "a b c d"]) == 0.0  # each text on its own
    assert repeated_4(["one two", ""]) == 0.0


def test_distinct_2_counts_pairs_of_neighbouring_words() -> None:
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["one", ""]) == 0.0
