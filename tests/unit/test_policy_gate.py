"""What the policy's gate lets through, on answers made up for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewardloop_trainer.policy_gate import Answered, Verdict, bootstrap_interval, distinct_2, gate
from rewardloop_trainer.policy_settings import PolicyGateLimits

LIMITS = PolicyGateLimits.model_validate({})
LIVE = Answered("you can hold the button", tokens=10, is_truncated=False, score=0.0)
BETTER = Answered("please hold the small button", tokens=11, is_truncated=False, score=1.0, log_ratio=2.0)


def judge(candidate: Answered, *, live: Answered = LIVE, prompts: int = 20) -> Verdict:
    return gate([[candidate, candidate]] * prompts, [[live, live]] * prompts, LIMITS)


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
        ({"text": " ", "score": None}, "empty"),
    ],
)
def test_each_collapse_is_refused_by_its_rule(change: dict[str, object], word: str) -> None:
    collapsed = replace(BETTER, **change)  # type: ignore[arg-type]
    varied = [replace(LIVE, text=f"{word} number {i} is another answer") for i in range(20)]
    verdict = gate([[collapsed]] * 20, [[a] for a in varied], LIMITS)
    assert not verdict.passed
    assert any(word in reason for reason in verdict.reasons)


def test_an_empty_answer_loses_to_any_other_and_ties_with_an_empty_one() -> None:
    empty = Answered("", tokens=1, is_truncated=False, score=None)
    assert gate([[empty]], [[replace(LIVE, score=-100.0)]], LIMITS).figures["gate_win_rate"] == 0.0
    assert gate([[empty]], [[empty]], LIMITS).figures["gate_win_rate"] == 0.5


def test_win_rate_counts_every_pair_of_answers_of_a_prompt() -> None:
    candidate = [[replace(BETTER, score=s) for s in (1.0, 3.0)]]
    live = [[replace(LIVE, score=s) for s in (0.0, 2.0, 3.0)]]
    # 1 beats 0; 3 beats 0 and 2 and ties 3: 3.5 of 6.
    assert gate(candidate, live, LIMITS).figures["gate_win_rate"] == pytest.approx(3.5 / 6)


def test_interval_is_clustered_by_prompt() -> None:
    """A hundred equal answers to each of four prompts are four pieces of evidence, not four hundred."""
    wins, losses = replace(BETTER, score=1.0), replace(BETTER, score=-1.0)
    few = gate([[wins], [wins], [wins], [losses]], [[LIVE]] * 4, LIMITS).figures
    many = gate([[wins] * 10, [wins] * 10, [wins] * 10, [losses] * 10], [[LIVE] * 10] * 4, LIMITS).figures
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
    verdict = gate([], [], LIMITS)
    assert not verdict.passed
    assert verdict.reasons


def test_distinct_2_counts_pairs_of_neighbouring_words() -> None:
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["one", ""]) == 0.0
