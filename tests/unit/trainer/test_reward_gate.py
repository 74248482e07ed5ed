"""What the gate of reward models lets through, and why not."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from support.gate_worlds import evidence, nothing, readings

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair
from rewardloop_trainer.evaluation.evidence import Evidence, Readings, Statements, evidence_of
from rewardloop_trainer.evaluation.reward_gate import Contest, RewardGateRules, judge_reward
from rewardloop_trainer.reward.settings import RewardTraining

Floats = npt.NDArray[np.float64]


def choices(prompts: int, each: int = 1) -> Evidence:
    of = np.repeat(np.arange(prompts), each)
    return evidence(Statements(np.ones(len(of)), np.ones(len(of)), of), nothing())


def thumbs(labels: Floats) -> Evidence:
    return evidence(nothing(), Statements(labels, np.ones(len(labels)), np.arange(len(labels))))


def margins(right: int, of: int) -> Floats:
    """Small ones, as a model's are that knows how often it is wrong."""
    return np.array([0.8] * right + [-0.8] * (of - right))


def of_choices(right: int, of: int) -> Readings:
    return readings(margins(right, of))


def test_a_better_candidate_passes_with_its_figures() -> None:
    outcome = judge_reward(choices(200), of_choices(150, 200), of_choices(120, 200), parity=1e-6)
    assert outcome.passed
    assert outcome.reasons == ()
    assert outcome.figures["gate_candidate_accuracy"] == 0.75
    assert outcome.figures["gate_live_accuracy"] == 0.6
    assert outcome.figures["gate_accuracy_difference"] == pytest.approx(0.15)
    assert outcome.figures["gate_accuracy_difference_lower"] > 0
    assert outcome.figures["gate_gain_lower"] > 0
    assert outcome.figures["gate_needed"] == 0.0
    assert outcome.figures["gate_parity"] == 1e-6


def test_a_worse_and_an_equal_candidate_are_refused_with_the_reason() -> None:
    worse = judge_reward(choices(400), of_choices(240, 400), of_choices(300, 400), parity=0.0)
    assert {reason.rule for reason in worse.reasons} == {"likelihood", "accuracy"}
    assert any("0.600" in reason and "0.750" in reason for reason in worse.reasons)
    equal = judge_reward(choices(400), of_choices(300, 400), of_choices(300, 400), parity=0.0)
    assert [reason.rule for reason in equal.reasons] == ["likelihood"]


def test_an_equal_candidate_passes_where_a_margin_is_accepted() -> None:
    lenient = RewardGateRules(margin=0.01)
    assert judge_reward(choices(400), of_choices(300, 400), of_choices(300, 400), 0.0, lenient).passed
    assert not judge_reward(choices(400), of_choices(240, 400), of_choices(300, 400), 0.0, lenient).passed


def test_without_enough_prompts_nothing_passes_and_the_reason_counts_them() -> None:
    outcome = judge_reward(choices(12), of_choices(12, 12), of_choices(0, 12), parity=0.0)
    assert [reason.rule for reason in outcome.reasons] == ["evidence"]
    assert "needs 38 more held-out prompts" in outcome.reasons[0]
    assert "have 12" in outcome.reasons[0]
    assert outcome.figures["gate_needed"] == 38.0
    one_prompt = judge_reward(choices(1, each=5_000), of_choices(5_000, 5_000), of_choices(0, 5_000), parity=0.0)
    assert "needs 49 more" in one_prompt.reasons[0]
    none = judge_reward(evidence(nothing(), nothing()), readings(np.zeros(0)), readings(np.zeros(0)), parity=0.0)
    assert "needs 50 more" in none.reasons[0]


@pytest.mark.parametrize("parity", [1.1e-4, float("inf"), float("nan")])
def test_bad_parity_is_refused(parity: float) -> None:
    outcome = judge_reward(choices(100), of_choices(90, 100), of_choices(50, 100), parity=parity)
    assert [reason.rule for reason in outcome.reasons] == ["parity"]
    assert all(np.isfinite(v) for v in outcome.figures.values())


def test_readings_that_are_not_finite_are_refused() -> None:
    said = margins(80, 100)
    said[3] = np.nan
    outcome = judge_reward(choices(100), readings(said), of_choices(50, 100), parity=0.0)
    assert outcome.reasons == ("1 of 100 margins and logits are not finite",)


def test_the_first_version_must_be_better_than_chance() -> None:
    assert judge_reward(choices(100), of_choices(70, 100), None, parity=0.0).passed
    by_luck = judge_reward(choices(100), of_choices(56, 100), None, parity=0.0)
    assert [reason.rule for reason in by_luck.reasons] == ["accuracy"]
    assert by_luck.figures["gate_length_baseline"] == 0.5


def test_readings_of_other_statements_are_an_error() -> None:
    with pytest.raises(ValueError, match="number"):
        judge_reward(choices(100), of_choices(3, 9), None, parity=0.0)


def test_equal_logits_count_half() -> None:
    outcome = judge_reward(choices(60), readings(np.zeros(60)), of_choices(30, 60), parity=0.0)
    assert outcome.figures["gate_candidate_accuracy"] == 0.5


def test_a_candidate_that_is_too_sure_is_refused_though_it_orders_better() -> None:
    outcome = judge_reward(choices(300), readings(20 * margins(220, 300)), of_choices(190, 300), parity=0.0)
    assert [reason.rule for reason in outcome.reasons] == ["calibration"]
    assert outcome.figures["gate_candidate_slope"] < 0.2
    assert outcome.figures["gate_candidate_calibration_error"] > 0.2


def graded(quality: float, rng: np.random.Generator, labels: Floats) -> Readings:
    """Logits that tell good answers from bad ones by ``quality`` deviations."""
    return Readings(np.zeros(0), quality * labels + rng.normal(size=len(labels)))


def test_thumbs_alone_refuse_a_bad_model_and_pass_a_good_one() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.7).astype(float)
    good, bad, inverted = (graded(quality, rng, labels) for quality in (1.0, 0.0, -1.0))
    assert judge_reward(thumbs(labels), good, None, parity=0.0).passed
    assert judge_reward(thumbs(labels), good, bad, parity=0.0).passed
    for worse in (bad, inverted):
        assert not judge_reward(thumbs(labels), worse, None, parity=0.0).passed
        assert not judge_reward(thumbs(labels), worse, good, parity=0.0).passed
    outcome = judge_reward(thumbs(labels), inverted, good, parity=0.0)
    assert outcome.figures["gate_candidate_auc"] < 0.3 < 0.7 < outcome.figures["gate_live_auc"]
    assert outcome.figures["gate_thumb_gain_upper"] < 0


@pytest.mark.parametrize("disliked", [0, 1])
def test_thumbs_of_one_kind_are_no_evidence_and_the_gate_says_which_are_missing(disliked: int) -> None:
    """However well the one disliked answer scores below the others: at random it is the last one once in sixty."""
    labels = (np.arange(60) >= disliked).astype(float)
    best = Readings(np.zeros(0), np.arange(60.0))
    (reason,) = judge_reward(thumbs(labels), best, None, parity=0.0).reasons
    assert reason.rule == "evidence"
    assert f"two with disliked ones (have {disliked} of the rarer kind)" in reason
    assert judge_reward(thumbs((np.arange(60) >= 2).astype(float)), best, None, parity=0.0).passed


def test_a_gain_in_choices_does_not_pay_for_a_loss_in_thumbs() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(400) < 0.5).astype(float)
    both = replace(choices(400), graded=thumbs(labels).graded, grades=thumbs(labels).grades)
    keys = tuple(f"g{i}" for i in range(400))
    both = replace(both, grade_keys=keys)
    good, bad = (graded(quality, rng, labels).logits for quality in (1.0, 0.0))
    outcome = judge_reward(both, Readings(margins(390, 400), bad), Readings(margins(240, 400), good), parity=0.0)
    assert outcome.figures["gate_gain_lower"] > 0
    assert [str(reason) for reason in outcome.reasons if "thumbs" in reason]


def test_a_candidate_below_the_best_so_far_on_the_anchor_set_is_refused() -> None:
    best = Contest(choices(300), of_choices(200, 300), of_choices(210, 300))
    outcome = judge_reward(choices(200), of_choices(150, 200), of_choices(120, 200), 0.0, best=best)
    assert [reason.rule for reason in outcome.reasons] == ["best_so_far"]
    assert outcome.figures["gate_best_gain"] < 0
    equal = replace(best, other=best.candidate)
    assert judge_reward(choices(200), of_choices(150, 200), of_choices(120, 200), 0.0, best=equal).passed


PROMPT, OTHER = (Turn("user", "Is it so?"),), (Turn("user", " is it  SO? "),)


def test_the_pairs_of_a_ranking_share_its_weight_and_are_of_one_prompt() -> None:
    ranked = RankedList(PROMPT, tuple("abcdefgh"), 0.5, "e1")
    records: list[Record] = [ranked, Pair(OTHER, "a", "b", 1.0, "e2"), TiedPair(PROMPT, "a", "c", 1.0, "e3")]
    found = evidence_of(records, RewardTraining(tie_weight=0.5))
    assert len(found.pairs) == 28 + 1 + 1
    assert found.comparisons.weights[:28].sum() == pytest.approx(0.5)
    assert found.comparisons.weights[28:].tolist() == [1.0, 0.5]
    assert found.comparisons.targets[28:].tolist() == [1.0, 0.5]
    assert set(found.comparisons.clusters.tolist()) == {0}  # one prompt, however it is written
    assert found.prompts == pytest.approx(1.0)
    assert len(set(found.keys)) == 30


def test_thumbs_and_ratings_are_evidence_with_the_weight_that_training_gives_them() -> None:
    found = evidence_of(
        [Labelled(PROMPT, "a", 1.0), Labelled(PROMPT, "b", 0.25, 0.5)], RewardTraining(pointwise_weight=0.5)
    )
    assert found.grades.targets.tolist() == [1.0, 0.25]
    assert found.grades.weights.tolist() == [0.5, 0.25]


def test_many_prompts_do_not_take_long() -> None:
    started = time.process_time()
    judge_reward(choices(4_000), of_choices(3_000, 4_000), of_choices(2_900, 4_000), parity=0.0)
    assert time.process_time() - started < 5
