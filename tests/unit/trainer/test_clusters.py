"""Bounds of means over clusters, against numbers by hand and against how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop_trainer.clusters import clustered_auc, clustered_mean, effective_clusters, t_quantile


def test_mean_of_single_values_has_the_usual_standard_error() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = clustered_mean(values, np.ones(5), np.arange(5))
    assert found.mean == pytest.approx(0.6)
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(5))
    assert found.clusters == pytest.approx(5)


def test_repeated_judgements_of_a_prompt_add_no_certainty() -> None:
    values, clusters = np.array([1.0, 0.0, 1.0, 1.0]), np.arange(4)
    once = clustered_mean(values, np.ones(4), clusters)
    often = clustered_mean(np.repeat(values, 50), np.ones(200), np.repeat(clusters, 50))
    assert (often.mean, often.error, often.clusters) == pytest.approx((once.mean, once.error, once.clusters))


def test_one_heavy_prompt_counts_as_about_one() -> None:
    clusters = np.concatenate([np.zeros(1000, dtype=np.int64), np.arange(1, 51)])
    assert effective_clusters(np.ones(1050), clusters) < 1.2
    assert effective_clusters(np.ones(0), np.zeros(0, dtype=np.int64)) == 0.0


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.95, 10, 1.812), (0.975, 10, 2.228), (0.95, 50, 1.676), (0.999, 30, 3.385), (0.5, 5, 0.0)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: float, quantile: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=2e-3)


def test_auc_counts_ties_half() -> None:
    scores, is_good = np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])
    # 3 beats both; 1 loses to 2 and ties with 1: 2.5 of 4.
    assert clustered_auc(scores, is_good, np.ones(4), np.arange(4)).mean == pytest.approx(2.5 / 4)
    assert math.isnan(clustered_auc(scores, np.ones(4, dtype=bool), np.ones(4), np.arange(4)).mean)


def test_the_error_of_an_auc_is_delongs() -> None:
    good, bad = np.array([5.0, 2.0, 3.0]), np.array([1.0, 4.0, 2.0])
    wins = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    by_hand = math.sqrt(wins.mean(1).var(ddof=1) / 3 + wins.mean(0).var(ddof=1) / 3)
    found = clustered_auc(np.concatenate([good, bad]), np.arange(6) < 3, np.ones(6), np.arange(6))
    assert found.error == pytest.approx(by_hand)


def test_one_liked_answer_among_many_tells_nothing_of_others() -> None:
    """Scores at random put it above 80% of the others in a fifth of all cases."""
    for liked in (49, 40):
        auc = clustered_auc(np.arange(50.0), np.arange(50) == liked, np.ones(50), np.arange(50))
        assert auc.mean == pytest.approx(liked / 49)
        assert (auc.lower(0.04), auc.upper(0.04)) == (0.0, 1.0)


def test_bounds_are_wrong_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    wrong = np.zeros(2)
    for _ in range(1000):
        prompts = np.repeat(np.arange(60), 2)
        shared = rng.normal(size=60)[prompts]
        mean = clustered_mean(shared + rng.normal(size=120), np.ones(120), prompts)
        is_good = rng.random(120) < 0.5
        auc = clustered_auc(shared, is_good, np.ones(120), prompts)
        wrong += [mean.lower(0.05) > 0, auc.lower(0.05) > 0.5]
    assert 25 < wrong[0] < 80
    # Of an AUC less often: a good and a bad answer of one prompt, whose scores are equal here, count as two prompts.
    assert 10 < wrong[1] < 80
