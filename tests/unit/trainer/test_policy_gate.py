"""What the policy's gate lets through, on answers made up for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewardloop_trainer.evaluation.collapse import distinct_2, repeated_4, words
from rewardloop_trainer.evaluation.policy_gate import (
    Answered,
    Fluency,
    FromAnchor,
    judge_policy,
    share_won,
    win_share,
)
from rewardloop_trainer.evaluation.verdict import Verdict
from rewardloop_trainer.policy.settings import PolicyGateLimits

LIMITS = PolicyGateLimits.model_validate({"least_prompts": 10})
ANY = LIMITS.model_copy(update={"least_prompts": 1})
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
    assert judge_policy([[empty]], [[replace(LIVE, score=-100.0)]], ANY).figures["gate_win_rate"] == 0.0
    assert judge_policy([[empty]], [[empty]], ANY).figures["gate_win_rate"] == 0.5


def test_win_rate_counts_every_pair_of_answers_of_a_prompt() -> None:
    candidate = [[replace(BETTER, score=s) for s in (1.0, 3.0)]]
    live = [[replace(LIVE, score=s) for s in (0.0, 2.0, 3.0)]]
    # 1 beats 0; 3 beats 0 and 2 and ties 3: 3.5 of 6.
    assert judge_policy(candidate, live, ANY).figures["gate_win_rate"] == pytest.approx(3.5 / 6)


def test_interval_is_clustered_by_prompt() -> None:
    """A hundred equal answers to each of four prompts are four pieces of evidence, not four hundred."""
    wins, losses = replace(BETTER, score=1.0), replace(BETTER, score=-1.0)
    few = judge_policy([[wins], [wins], [wins], [losses]], [[LIVE]] * 4, ANY).figures
    many = judge_policy([[wins] * 10, [wins] * 10, [wins] * 10, [losses] * 10], [[LIVE] * 10] * 4, ANY).figures
    for name in ("gate_win_rate", "gate_win_rate_lower", "gate_win_rate_upper"):
        assert few[name] == many[name]
    assert few["gate_win_rate"] == 0.75
    assert few["gate_win_rate_lower"] <= 0.25


def test_interval_of_a_win_rate_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(1).random(400)
    expected = 1.96 * values.std() / 20
    found = share_won(values)
    assert found.lower(0.025) == pytest.approx(values.mean() - expected, abs=0.002)
    assert found.upper(0.025) == pytest.approx(values.mean() + expected, abs=0.002)


def test_a_candidate_that_wins_or_loses_every_prompt_by_score_is_not_certain_to() -> None:
    """The interval narrows with the prompts; resampling equal values gave it no width, with three prompts as well."""
    lower = []
    for prompts in (3, 20, 200):
        wins = judge_policy([[BETTER]] * prompts, [[LIVE]] * prompts, ANY, earlier=[0.0] * prompts)
        assert wins.figures["gate_score_win_rate"] == 1.0 == wins.figures["gate_score_win_rate_upper"]
        lower.append(wins.figures["gate_score_win_rate_lower"])
        assert wins.figures["gate_earlier_win_rate_upper"] == pytest.approx(1 - lower[-1])
        assert (any(reason.rule == "earlier_version" for reason in wins.reasons)) == (prompts > 3)
    assert lower == sorted(lower)
    assert lower[0] < 0.5 < lower[1]
    assert lower[2] < 1


def test_without_a_prompt_nothing_passes() -> None:
    verdict = judge_policy([], [], LIMITS)
    assert not verdict.passed
    assert verdict.reasons == ("needs 10 more held-out prompts to judge on (have 0)",)


def test_too_few_prompts_decide_nothing() -> None:
    verdict = judge_policy([[BETTER]] * 9, [[LIVE]] * 9, LIMITS)
    assert verdict.reasons == ("needs 1 more held-out prompts to judge on (have 9)",)


def test_an_independent_judge_decides_and_scores_are_told_beside_it() -> None:
    """The scores call every answer better; the judge, which the update did not see, calls it worse."""
    answers = [[BETTER]] * 20, [[LIVE]] * 20
    verdict = judge_policy(*answers, LIMITS, judged=[0.25] * 20)
    assert 0.25 == verdict.figures["gate_win_rate"] < verdict.figures["gate_win_rate_upper"] < 0.5
    assert verdict.figures["gate_score_win_rate"] == 1.0
    assert [reason for reason in verdict.reasons if "win rate" in reason]
    assert judge_policy(*answers, LIMITS, judged=[1.0] * 20).passed
    with pytest.raises(ValueError, match="judges them all"):
        judge_policy(*answers, LIMITS, judged=[1.0])


def test_a_policy_that_the_reward_version_before_likes_less_is_refused() -> None:
    """Scores and judge call every answer better; the version before, with errors of its own, does not."""
    answers = [[BETTER]] * 20, [[LIVE]] * 20
    verdict = judge_policy(*answers, LIMITS, judged=[1.0] * 20, earlier=[0.0] * 16 + [1.0] * 4)
    assert [reason.rule for reason in verdict.reasons] == ["earlier_version"]
    assert "prefers the live policy: win rate 0.200" in verdict.reasons[0]
    undecided = judge_policy(*answers, LIMITS, judged=[1.0] * 20, earlier=[0.0] * 11 + [1.0] * 9)
    assert undecided.passed
    assert undecided.figures["gate_earlier_win_rate"] == pytest.approx(0.45)
    with pytest.raises(ValueError, match="judges them all"):
        judge_policy(*answers, LIMITS, earlier=[1.0])


def test_win_rate_that_may_be_chance_is_refused() -> None:
    """Twelve of twenty: 0.6, and its interval reaches below one half."""
    candidate = [[replace(BETTER, score=1.0 if i < 12 else -1.0)] for i in range(20)]
    live = [[LIVE]] * 20
    verdict = judge_policy(candidate, live, LIMITS)
    assert verdict.figures["gate_win_rate_lower"] < 0.5
    assert [str(reason) for reason in verdict.reasons if "by its interval" in reason]
    assert judge_policy([[BETTER]] * 20, live, LIMITS).passed
    lenient = LIMITS.model_copy(update={"least_win_rate_lower": 0.0})
    assert judge_policy(candidate, live, lenient).passed


def test_early_look_needs_more_than_the_last_one() -> None:
    """Sixty-five of a hundred: enough if these are all prompts, not if they are a fifth of what was planned."""
    candidate = [[replace(BETTER, score=1.0 if i < 65 else -1.0)] for i in range(100)]
    live = [[LIVE]] * 100
    assert judge_policy(candidate, live, LIMITS).passed
    early = judge_policy(candidate, live, LIMITS, planned=500)
    assert not early.passed
    assert early.figures["gate_win_rate_lower"] < 0.5
    assert early.figures["gate_planned_prompts"] == 500.0


def test_limits_hold_to_the_anchor_over_all_rounds() -> None:
    answers = [[BETTER]] * 20, [[LIVE]] * 20
    near = FromAnchor("1", 29.0, [[LIVE]] * 20)
    assert judge_policy(*answers, LIMITS, anchor=near).passed
    far = judge_policy(*answers, LIMITS, anchor=replace(near, kl=31.0))
    assert [reason.rule for reason in far.reasons] == ["anchor"]
    assert "anchor policy, 1" in far.reasons[0]
    assert "--policy.gate.anchor" in far.reasons[0]
    short = judge_policy(*answers, LIMITS, anchor=replace(near, answers=[[replace(LIVE, tokens=5)]] * 20))
    assert [reason.rule for reason in short.reasons] == ["anchor"]
    # 1.4 times the live one's perplexity, and 1.96 times the anchor's.
    costly = judge_policy(*answers, LIMITS, anchor=near, fluency=Fluency(math.log(1.96), math.log(1.4), 0.0))
    assert [reason.rule for reason in costly.reasons] == ["anchor"]
    assert judge_policy(*answers, LIMITS).figures["gate_anchor_kl"] == pytest.approx(2.0)


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


def test_scripts_without_spaces_are_split_into_characters() -> None:
    assert words("hold the button") == ["hold", "the", "button"]
    assert words("请按住 按钮") == ["请", "按", "住", "按", "钮"]
    assert words("go" * 20) == ["g", "o"] * 20
    assert repeated_4(["按住按钮" * 5]) > 0.7  # one word, if it were split at spaces
    assert repeated_4(["请按住那个小小的按钮然后等灯亮起来"]) == 0.0


def test_chinese_policy_that_repeats_one_phrase_is_refused() -> None:
    said = [f"第{i}个问题的回答是先关掉电源再打开盖子" for i in range(20)]
    before = [[replace(LIVE, text=text)] for text in said]
    fluent = [[replace(BETTER, text=text)] for text in said]
    assert judge_policy(fluent, before, LIMITS).passed
    stuck = judge_policy([[replace(BETTER, text="好的没问题" * 4)]] * 20, before, LIMITS)
    assert {reason.rule for reason in stuck.reasons} >= {"repetition", "distinct"}
