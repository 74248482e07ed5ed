"""The always-valid interval: against capital counted by hand, and its promise under optional stopping."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop_trainer.evaluation.confidence_sequence import Bounds, bounds_of, exceeds


def test_first_win_excludes_what_the_capital_says() -> None:
    """The stakes 0.1, 0.2, 0.4 and 0.8 are 3/8 on average, so a win makes the capital 1 + 3/8 (1 / m - 1).

    With alpha 0.8 it must reach 2 / 0.8 = 2.5, and does up to 1 / m = 5: m = 0.2.
    """
    assert bounds_of([], alpha=0.8) == Bounds(0.0, 1.0)
    assert bounds_of([1.0], alpha=0.8) == Bounds(0.2, 1.0)


def test_capital_of_two_wins_is_the_mean_of_each_stakes_product() -> None:
    """With z = 1 / m - 1 it is 1 + 2 * 3/8 z + 0.2125 z^2 (the mean square of the stakes): 2.5 at z = 1.4229.

    That is m = 0.4127; the next lower point of the grid is 0.41.
    """
    assert bounds_of([1.0, 1.0], alpha=0.8) == Bounds(0.41, 1.0)


def test_tie_counts_as_half_a_win() -> None:
    """Two ties: z = 1 / (2 m) - 1 is 1.4229, as above, at half the mean, 0.2064; and the same from the other end."""
    assert bounds_of([0.5, 0.5], alpha=0.8) == Bounds(0.205, 0.795)


def test_losses_mirror_wins() -> None:
    values = [1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 0.7, 1.0] * 20
    for count in (1, 8, 50, 160):
        up, down = bounds_of(values[:count]), bounds_of([1 - value for value in values[:count]])
        assert up.lower == pytest.approx(1 - down.upper)
        assert up.upper == pytest.approx(1 - down.lower)
    assert bounds_of(values).lower > 0.5
    assert exceeds(values, 0.5) == (True, False)
    assert exceeds([1 - value for value in values], 0.5) == (False, True)


def test_ties_alone_never_exclude_a_half_and_say_more_than_coins() -> None:
    ties, coins = bounds_of([0.5] * 500), bounds_of([float(i % 2) for i in range(500)])
    assert ties.lower < 0.5 < ties.upper
    assert ties.upper - ties.lower < coins.upper - coins.lower


@pytest.mark.parametrize("mean", [0.5, 0.8])
def test_mean_is_missed_at_any_time_in_at_most_alpha_of_the_runs(mean: float) -> None:
    """200 runs of 250 values that are looked at after each; alpha 0.1, and three deviations of 200 coins."""
    missed = 0
    for seed in range(200):
        values = (np.random.default_rng(seed).random(250) < mean).astype(float)
        missed += any(any(exceeds(values[:count], mean, alpha=0.1)) for count in range(1, 251))
    assert missed / 200 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 200)


def test_fixed_size_interval_would_miss_far_more_often() -> None:
    """Why the simpler interval is not used: looked at after each value, its 10% become more than 40%."""
    missed = 0
    for seed in range(200):
        values = np.random.default_rng(seed).random(1_000) < 0.5
        counts = np.arange(1, 1_001)
        means = values.cumsum() / counts
        widths = 1.645 * np.sqrt(np.maximum(means * (1 - means), 1e-9) / counts)
        missed += bool((np.abs(means - 0.5) > widths)[20:].any())
    assert missed / 200 > 0.4


def test_capital_without_bound_is_not_lost() -> None:
    assert bounds_of([1.0] * 20_000).lower > 0.98


def test_bounds_close_on_the_mean() -> None:
    bounds = bounds_of(np.random.default_rng(0).beta(8, 2, size=2_000))
    assert bounds.lower < 0.8 < bounds.upper
    assert bounds.upper - bounds.lower < 0.06


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_values_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        bounds_of([0.5, value])
