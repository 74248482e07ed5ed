"""Bounds of shares: within 0 and 1, as sure as they say close to 1, and never looser for a gate than Student's t."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from rewardloop_trainer.assessment.measures import measured, share_of
from rewardloop_trainer.clusters import (
    ClusteredAuc,
    ClusteredMean,
    ClusteredShare,
    as_difference,
    as_share,
    clustered_auc,
    clustered_mean,
)
from rewardloop_trainer.evaluation.off_policy import off_policy_value
from rewardloop_trainer.evaluation.sequential import WinRatePlan

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "gates.md"
Floats = npt.NDArray[np.float64]
_GATE_ALPHA = 0.04


def of_count(successes: int, cases: int) -> ClusteredMean:
    """The mean of independent cases."""
    values = np.array([1.0] * successes + [0.0] * (cases - successes))
    return clustered_mean(values, np.ones(cases), np.arange(cases))


def chances(cases: int, share: float) -> Floats:
    """The probability of each number of successes, (cases + 1,)."""
    return np.array([math.comb(cases, k) * share**k * (1 - share) ** (cases - k) for k in range(cases + 1)])


def least_coverage(cases: int, shares: Floats, kind: Callable[[ClusteredMean], ClusteredMean]) -> float:
    """How often the 95% interval holds the truth at the least favourable share, computed over all samples."""
    found = [kind(of_count(k, cases)) for k in range(cases + 1)]
    lower, upper = (np.array([bound(each, 0.025) for each in found]) for bound in (_lower, _upper))
    return min(float(chances(cases, p)[(lower <= p) & (p <= upper)].sum()) for p in shares)


def _lower(mean: ClusteredMean, alpha: float) -> float:
    return mean.lower(alpha)


def _upper(mean: ClusteredMean, alpha: float) -> float:
    return mean.upper(alpha)


def by_t(mean: ClusteredMean) -> ClusteredMean:
    return mean


def cells(heading: str) -> dict[str, list[float]]:
    """The rows of the page's table with this heading."""
    below = PAGE.read_text(encoding="utf-8").partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in below.splitlines()[2:]]
    return {name: [float(cell) for cell in values] for name, *values in rows}


def test_an_interval_of_a_share_stays_within_0_and_1() -> None:
    for cases in (2, 5, 20, 38):
        for k in range(cases + 1):
            found = measured(as_share(of_count(k, cases)))
            assert 0 <= found.lower <= found.value <= found.upper <= 1
    assert of_count(36, 38).upper(0.025) > 1  # by Student's t alone


def test_a_share_without_a_failure_has_an_interval_that_narrows_with_evidence() -> None:
    lower = [as_share(of_count(n, n)).lower(0.025) for n in (5, 10, 50, 500)]
    assert lower == sorted(lower)
    assert lower[0] < 0.5 < lower[1]
    assert 0.9 < lower[2] < 0.95
    assert as_share(of_count(0, 10)).upper(0.025) == pytest.approx(1 - lower[1])
    assert lower == pytest.approx([0.4782, 0.6915, 0.9289, 0.9926], abs=1e-4)  # Clopper and Pearson's


def test_values_that_are_all_alike_but_for_rounding_say_no_more_than_their_prompts() -> None:
    values = np.array([2 / 3, 1 - 1 / 3, (0.1 + 0.2) / 0.45] * 20)
    found = share_of(values, np.arange(60) % 2)
    assert found.lower(0.025) < 0.45
    assert found.upper(0.025) > 0.9


def test_wilsons_bound_by_hand() -> None:
    """8 of 10 with n = 10 * 9 / 10 because the error divides by n - 1, and t(9) = 2.262 for z."""
    p, n, t = 0.8, 9.0, 2.2622
    by_hand = (p + t**2 / (2 * n) - t * math.sqrt(p * (1 - p) / n + t**2 / (4 * n**2))) / (1 + t**2 / n)
    assert as_share(of_count(8, 10)).lower(0.025) == pytest.approx(by_hand, abs=1e-3)


def test_nothing_known_is_no_bound() -> None:
    nothing = share_of(np.zeros(0), np.zeros(0, dtype=np.int64))
    assert math.isnan(nothing.lower(0.025))
    assert math.isnan(nothing.upper(0.025))
    one = share_of(np.ones(3), np.zeros(3, dtype=np.int64))  # of one prompt
    assert (one.lower(0.025), one.upper(0.025)) == (0.0, 1.0)


@pytest.mark.parametrize(("place", "cases"), list(enumerate((5, 10, 20, 50, 100))))
def test_intervals_hold_the_truth_as_often_as_the_page_says(place: int, cases: int) -> None:
    told = cells("shares and bounds")
    for name, shares in (("0.5 to 0.9", np.arange(0.5, 0.9, 0.01)), ("0.9 to 0.999", np.arange(0.9, 0.9995, 0.001))):
        now = least_coverage(cases, shares, as_share)
        assert now >= 0.94
        assert told[f"{name}, the farther of both"][place] == pytest.approx(100 * now, abs=0.06)
        assert told[f"{name}, by t alone"][place] == pytest.approx(100 * least_coverage(cases, shares, by_t), abs=0.06)


def test_intervals_over_prompts_with_several_weighted_choices_hold_the_truth() -> None:
    """40 prompts of 1 to 4 choices that share their prompt's accuracy, near 0.93; weights differ threefold."""
    held: list[bool] = []
    held_by_t: list[bool] = []
    for seed in range(1_500):
        chance = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(40), chance.integers(1, 5, 40))
        accuracy = chance.beta(9.3, 0.7, 40)
        values = (chance.random(len(prompts)) < accuracy[prompts]).astype(np.float64)
        mean = clustered_mean(values, chance.uniform(0.5, 1.5, len(prompts)), prompts)
        for found, kept in ((as_share(mean), held), (mean, held_by_t)):
            kept.append(found.lower(0.025) <= 0.93 <= found.upper(0.025))
    assert np.mean(held) >= 0.94
    assert np.mean(held) > np.mean(held_by_t)


def test_no_gate_passes_what_students_t_refused() -> None:
    """A gate asks whether the lower bound is above a threshold, or the upper one below it."""
    chance = np.random.default_rng(1)
    for _ in range(500):
        clusters = np.sort(chance.integers(0, 30, 60))
        values = chance.choice([0.0, 0.5, 1.0], 60, p=chance.dirichlet([0.4, 0.3, 1.0]))
        mean = clustered_mean(values, chance.uniform(0.1, 2.0, 60), clusters)
        share = as_share(mean)
        for alpha in (0.001, 0.025, 0.04):
            assert share.lower(alpha) <= max(0.0, mean.lower(alpha))
            assert share.upper(alpha) >= min(1.0, mean.upper(alpha))


@pytest.mark.parametrize("prompts", [50, 100, 300])
def test_a_first_version_passes_as_often_as_the_page_says(prompts: int) -> None:
    told = cells("first version, accuracy")
    for name, kind in ((f"{prompts} prompts", as_share), (f"{prompts} prompts, by t alone", by_t)):
        passes = np.array([kind(of_count(k, prompts)).lower(_GATE_ALPHA) > 0.5 for k in range(prompts + 1)])
        found = [100 * float(chances(prompts, p)[passes].sum()) for p in (0.45, 0.5, 0.55, 0.6, 0.65, 0.7)]
        assert told[name] == pytest.approx(found, abs=0.06)
        assert found[1] <= 5


def test_auc_and_self_normalised_values_have_bounds_of_shares() -> None:
    scores, is_good = np.arange(20.0), np.arange(20) >= 10
    scores[0] = 15.5
    auc = clustered_auc(scores, is_good, np.ones(20), np.arange(20))
    assert isinstance(auc, ClusteredShare)
    assert auc.upper(0.025) <= 1 < auc.mean + 3 * auc.error
    values = np.array([1.0] * 39 + [0.0])
    found = off_policy_value(values, np.ones(40), [str(i) for i in range(40)])
    for value in (found.logged, found.snips):
        assert 0.8 < value.lower < value.estimate < value.upper <= 1


def orderings(good: int, bad: int) -> Floats:
    """The probability of each Mann-Whitney statistic if scores say nothing, (good bad + 1,), by its recursion."""
    rows = [np.ones(1) for _ in range(bad + 1)]  # of no good answer, by the number of bad ones
    for g in range(1, good + 1):
        now = [np.ones(1)]
        for b in range(1, bad + 1):
            counts = np.zeros(g * b + 1)
            counts[b:] += rows[b]  # the highest score is a good answer's: it exceeds all bad ones
            counts[: len(now[-1])] += now[-1]
            now.append(counts)
        rows = now
    found: Floats = rows[bad] / rows[bad].sum()
    return found


def test_the_null_distribution_of_few_orderings_by_hand() -> None:
    assert orderings(2, 2) * 6 == pytest.approx([1, 1, 2, 1, 1])


@pytest.mark.parametrize("of", [50, 200])
@pytest.mark.parametrize("rarer", [1, 2, 3, 5, 10])
def test_a_model_that_scores_at_random_is_taken_for_a_good_one_as_seldom_as_the_gate_says(rarer: int, of: int) -> None:
    """Computed over all orderings, of the bound that does not depend on how the answers happen to differ."""
    chance = orderings(rarer, of - rarer)
    for alpha in (0.025, _GATE_ALPHA):
        passing = 0.0
        for statistic in reversed(range(len(chance))):
            auc = ClusteredAuc(statistic / (len(chance) - 1), 0.0, of, rarer, of - rarer)
            if auc.lower(alpha) <= 0.5:
                break
            passing += float(chance[statistic])
        assert passing <= 1.03 * alpha
        assert passing == 0 if rarer == 1 else passing > 0.8 * alpha


def test_bounds_of_an_auc_are_mirrored_if_liked_and_disliked_answers_change_places() -> None:
    chance = np.random.default_rng(3)
    scores, is_good = chance.normal(size=40), np.arange(40) < 4
    found, turned = (clustered_auc(scores, kind, np.ones(40), np.arange(40)) for kind in (is_good, ~is_good))
    assert turned.lower(0.04) == pytest.approx(1 - found.upper(0.04))
    assert found.rarer == pytest.approx(turned.rarer) == pytest.approx(4)


@pytest.mark.parametrize(("rarer", "true"), [(2, 0.75), (3, 0.9), (5, 0.75), (10, 0.9)])
def test_intervals_of_an_auc_hold_the_truth_with_few_of_the_rarer_kind(rarer: int, true: float) -> None:
    chance = np.random.default_rng(rarer)
    is_good, apart = np.arange(60) >= rarer, 2**0.5 * NormalDist().inv_cdf(true)
    held = []
    for _ in range(600):
        found = clustered_auc(chance.normal(size=60) + apart * is_good, is_good, np.ones(60), np.arange(60))
        held.append(found.lower(0.025) <= true <= found.upper(0.025))
    assert np.mean(held) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize("kind", ["weights", "tied scores", "several of a prompt"])
def test_random_scores_of_unequal_or_tied_answers_are_seldom_taken_for_good_ones(kind: str) -> None:
    passed = np.zeros(2)
    for seed in range(1_000):
        chance = np.random.default_rng(seed)
        prompts, scores, weights = np.arange(60), chance.normal(size=60), np.ones(60)
        is_good = prompts >= 3
        if kind == "weights":
            weights = chance.exponential(size=60)
        elif kind == "tied scores":
            scores = (scores > 0.7).astype(np.float64)
        else:  # answers of a prompt are much alike, in score and in what people said of them
            prompts = prompts // 2
            is_good, scores = prompts >= 2, scores[prompts] + 0.3 * chance.normal(size=60)
        found = clustered_auc(scores, is_good, weights, prompts)
        passed += [found.lower(_GATE_ALPHA) > 0.5, ClusteredShare.lower(found, _GATE_ALPHA) > 0.5]
    assert passed[0] / 1_000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_000)
    assert passed[1] > 1.4 * passed[0]  # by DeLong's error alone


def test_a_difference_that_is_the_same_in_all_prompts_leaves_open_what_was_not_seen() -> None:
    for value in (-1.0, 0.0, 1.0):
        for number in (3, 20, 500):
            found = as_difference(clustered_mean(np.full(number, value), np.ones(number), np.arange(number)))
            unseen = 1 - 0.025 ** (1 / number)
            assert found.lower(0.025) == pytest.approx(value - unseen * (value + 1))
            assert found.upper(0.025) == pytest.approx(value + unseen * (1 - value))
    differing = clustered_mean(np.array([0.0, 1.0] * 20), np.ones(40), np.arange(40))
    assert as_difference(differing).lower(0.025) == differing.lower(0.025)
    one = as_difference(clustered_mean(np.ones(3), np.ones(3), np.zeros(3, dtype=np.int64)))
    assert (one.lower(0.025), one.upper(0.025)) == (-1.0, 1.0)
    assert math.isnan(as_difference(clustered_mean(np.zeros(0), np.zeros(0), np.arange(0))).upper(0.025))


def test_a_look_at_wins_without_a_loss_has_a_lower_bound_below_1() -> None:
    look = WinRatePlan(100, 0.5, 0.04).look(np.ones(100))
    assert look.decision == "better"
    assert 0.9 < look.lower < 1 == look.upper
