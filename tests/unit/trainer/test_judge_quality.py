"""A judge's agreement, consistency, biases and calibration are measured, each within its interval."""

from __future__ import annotations

import math
import random

from rewardloop.formats.text import Turn
from rewardloop_trainer.commands.judge.report import show_quality
from rewardloop_trainer.evaluation.judge_quality import Bounded, Judged, JudgeQuality, measure_judge
from rewardloop_trainer.judging.judge import Duel, Opinion
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.judging.pairs.candidates import Candidate, PersonSaid


def judged(i: int, opinion: Opinion, *people: float, first: str = "aaaa", second: str = "bb") -> Judged:
    duel = Duel((Turn("user", f"q{i}"),), first, second)
    return Judged(Candidate(duel, tuple(PersonSaid(f"p{n}", wins) for n, wins in enumerate(people))), opinion)


def simulated(pairs: int, position: float, error: float, longer: float, seed: int) -> JudgeQuality:
    """A judge that takes the first in a share ``position`` of the pairs, and the longer one in a share of the rest."""
    chance = random.Random(seed)
    found = []
    for i in range(pairs):
        truth = float(chance.random() < 0.5)  # 1: the first is better, which is the longer one
        if chance.random() < position:
            opinion = Opinion("tie", 0.5, 1.0, False)
        else:
            says = truth if chance.random() >= error else 1 - truth
            says = 1.0 if chance.random() < longer else says
            opinion = Opinion("first" if says else "second", says)
        found.append(judged(i, opinion, truth))
    return measure_judge("j", found)


def holds(bounded: Bounded, truth: float) -> bool:
    return bounded.lower <= truth <= bounded.upper


def test_planted_error_position_and_length_bias_are_within_the_intervals() -> None:
    runs = [simulated(400, 0.3, 0.2, 0.25, seed) for seed in range(40)]
    # Where the shorter one is better, the long one is taken in a quarter of the pairs, and by error in 0.2 of the rest.
    longer = 0.25 * 0.5
    error = 0.75 * 0.2 + 0.25 * 0.5
    for figure, truth in (("agreement", 1 - error), ("consistency", 0.7), ("first_shown", 0.65), ("longer", longer)):
        share = sum(holds(getattr(run, figure), truth) for run in runs) / len(runs)
        assert share >= 0.85, figure


def test_no_bias_is_found_where_none_is_planted() -> None:
    runs = [simulated(300, 0.0, 0.2, 0.0, seed) for seed in range(40)]
    assert sum(holds(run.longer, 0.0) for run in runs) >= 34
    assert all(run.first_shown.value == 0.5 and run.consistency.value == 1.0 for run in runs)
    assert all(run.consistency.lower < 1.0 for run in runs)


def test_calibration_is_the_stated_probability_less_what_people_chose() -> None:
    pairs = [judged(i, Opinion("first", 0.9), float(i % 10 < 7)) for i in range(100)]
    found = measure_judge("j", pairs)
    assert math.isclose(found.overconfidence.value, 0.2)
    assert math.isclose(found.calibration_error, 0.2)
    assert found.overconfidence.lower > 0.05


def test_ties_and_pairs_of_nobody_say_nothing_about_agreement() -> None:
    found = measure_judge(
        "j",
        [judged(0, Opinion("first", 1.0)), judged(1, Opinion("tie", 0.5), 1.0), judged(2, Opinion("first", 1.0), 0.5)],
    )
    assert (found.pairs, found.shared) == (3, 2)
    assert math.isnan(found.agreement.value)
    assert found.weight is None
    assert not found.is_muted(0.9)
    empty = measure_judge("j", [])
    assert math.isnan(empty.consistency.value)


def test_people_of_one_pair_count_as_one_and_prompts_are_the_unit() -> None:
    found = measure_judge("j", [judged(i % 2, Opinion("first", 1.0), 1.0, 1.0, 0.0) for i in range(60)])
    assert math.isclose(found.agreement.value, 2 / 3)
    assert found.agreement.lower < 0.45  # two prompts


def test_a_judge_below_the_floor_is_muted_and_a_good_one_is_not() -> None:
    assert simulated(400, 0.0, 0.5, 0.0, 0).is_muted(0.9)
    assert simulated(400, 0.3, 0.2, 0.0, 0).is_muted(1.5)
    assert not simulated(400, 0.0, 0.0, 0.0, 0).is_muted(0.9)


def test_metrics_show_the_measurement_and_whether_the_judge_is_muted() -> None:
    metrics = JudgeMetrics()

    def shown(name: str, **labels: str) -> float:
        value = metrics.registry.get_sample_value(f"rewardloop_judge_{name}", labels)
        assert value is not None
        return value

    assert math.isnan(shown("quality", figure="agreement", bound="value"))
    assert shown("muted") == 0
    bad = simulated(400, 0.3, 0.5, 0.0, 0)
    show_quality(metrics, bad, 0.9)
    assert shown("muted") == 1
    assert shown("quality", figure="consistency", bound="lower") == bad.consistency.lower
    assert bad.weight is not None
    assert shown("quality", figure="weight", bound="upper") == bad.weight.upper
    metrics.show_pairs({("open", "shared"): 3})
    metrics.show_pairs({("sent", "shared"): 3})
    assert (shown("pairs", state="open", picked="shared"), shown("pairs", state="sent", picked="shared")) == (0, 3)
    show_quality(metrics, simulated(400, 0.0, 0.0, 0.0, 0), 0.9)
    assert shown("muted") == 0
