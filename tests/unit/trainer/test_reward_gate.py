import time

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.evaluation.reward_gate import judge_reward
from rewardloop_trainer.reward.evaluate import accuracy_difference


def pairs(prompts: int, each: int = 1) -> list[Pair]:
    return [Pair((Turn("user", str(i)),), "a", "b") for i in range(prompts) for _ in range(each)]


def margins(right: int, of: int) -> np.ndarray:
    return np.array([1.0] * right + [-1.0] * (of - right))


def test_a_better_candidate_passes_with_its_figures() -> None:
    outcome = judge_reward(pairs(200), margins(150, 200), margins(120, 200), parity=1e-6)
    assert outcome.passed
    assert outcome.reasons == ()
    assert outcome.figures["gate_candidate_accuracy"] == 0.75
    assert outcome.figures["gate_live_accuracy"] == 0.6
    assert outcome.figures["gate_accuracy_difference"] == pytest.approx(0.15)
    assert outcome.figures["gate_accuracy_difference_lower"] > 0
    assert outcome.figures["gate_parity"] == 1e-6


def test_a_clearly_worse_candidate_is_refused_with_the_reason() -> None:
    outcome = judge_reward(pairs(400), margins(240, 400), margins(300, 400), parity=0.0)
    assert not outcome.passed
    assert "0.600" in outcome.reasons[0]
    assert "0.750" in outcome.reasons[0]


def test_a_candidate_worse_within_the_tolerance_passes() -> None:
    # One pair of 1,000 lost: the interval ends at about -0.003.
    outcome = judge_reward(pairs(1_000), margins(699, 1_000), margins(700, 1_000), parity=0.0, tolerance=0.02)
    assert outcome.figures["gate_accuracy_difference"] == pytest.approx(-0.001)
    assert outcome.passed


def test_the_same_loss_is_refused_without_tolerance() -> None:
    assert not judge_reward(pairs(1_000), margins(699, 1_000), margins(700, 1_000), parity=0.0, tolerance=0.0).passed


def test_few_pairs_do_not_excuse_a_worse_candidate() -> None:
    assert not judge_reward(pairs(10), margins(4, 10), margins(6, 10), parity=0.0).passed


@pytest.mark.parametrize("parity", [1.1e-4, float("inf"), float("nan")])
def test_bad_parity_is_refused(parity: float) -> None:
    outcome = judge_reward(pairs(10), margins(10, 10), margins(0, 10), parity=parity)
    assert not outcome.passed
    assert "differ from torch" in outcome.reasons[0]
    assert all(np.isfinite(v) for v in outcome.figures.values())


def test_margins_that_are_not_finite_are_refused() -> None:
    candidate = margins(10, 10)
    candidate[3] = np.nan
    outcome = judge_reward(pairs(10), candidate, margins(0, 10), parity=0.0)
    assert outcome.reasons == ("1 of 10 margins are not finite",)


def test_the_first_version_has_nothing_to_be_compared_with() -> None:
    outcome = judge_reward(pairs(10), margins(3, 10), None, parity=0.0)
    assert outcome.passed
    assert outcome.figures["gate_candidate_accuracy"] == pytest.approx(0.3)


def test_without_heldout_pairs_only_parity_counts() -> None:
    assert judge_reward([], np.zeros(0), np.zeros(0), parity=0.0).passed
    assert not judge_reward([], np.zeros(0), np.zeros(0), parity=1.0).passed


def test_margins_of_other_pairs_are_an_error() -> None:
    with pytest.raises(ValueError, match="number"):
        judge_reward(pairs(10), margins(3, 9), None, parity=0.0)


def test_equal_logits_count_half() -> None:
    outcome = judge_reward(pairs(4), np.zeros(4), margins(2, 4), parity=0.0)
    assert outcome.figures["gate_candidate_accuracy"] == 0.5


def test_pairs_of_one_prompt_are_not_independent() -> None:
    # The same 400 pairs, once each with its own prompt, once in 10 prompts that are won or lost as a whole.
    candidate, live = margins(240, 400), margins(200, 400)
    apart = accuracy_difference(pairs(400), candidate, live)
    together = accuracy_difference(pairs(10, 40), candidate, live)
    assert together.estimate == apart.estimate
    assert together.upper - together.lower > 3 * (apart.upper - apart.lower)


def test_the_interval_is_that_of_the_normal_approximation_and_repeatable() -> None:
    # Gains of +1 on 80 and 0 on 320 of 400 prompts: mean 0.2, standard error sqrt(0.2 * 0.8 / 400) = 0.02.
    candidate, live = margins(400, 400), margins(320, 400)
    found = accuracy_difference(pairs(400), candidate, live)
    assert found == accuracy_difference(pairs(400), candidate, live)
    assert found.lower == pytest.approx(0.2 - 1.96 * 0.02, abs=0.004)
    assert found.upper == pytest.approx(0.2 + 1.96 * 0.02, abs=0.004)


def test_the_error_rate_of_the_gate_is_that_of_its_interval() -> None:
    # 200 candidates no better or worse than the live version: the interval misses 0 in about 5% of cases.
    generator = np.random.default_rng(0)
    shown = pairs(150)
    missed = 0
    for _ in range(200):
        candidate, live = (generator.random((2, 150)) < 0.7) - 0.5
        interval = accuracy_difference(shown, candidate, live, resamples=500)
        missed += not interval.lower <= 0 <= interval.upper
    assert 2 <= missed <= 22


def test_many_prompts_do_not_take_long() -> None:
    started = time.perf_counter()
    judge_reward(pairs(4_000), margins(3_000, 4_000), margins(2_900, 4_000), parity=0.0)
    assert time.perf_counter() - started < 30
