"""The share of length in a model's scores: how it is fitted, and the lengths between which it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.length_share import (
    NO_SHARE,
    LengthShare,
    bounded_length_slope,
    fit_length_slope,
    seen_lengths,
)


def of_length(tokens: int) -> Encoded:
    return Encoded([1] * tokens, None, False, tokens)


def test_full_length_control_leaves_margins_uncorrelated_with_length() -> None:
    rng = np.random.default_rng(1)
    log_ratios = rng.normal(size=400)
    margins = 0.7 * log_ratios + rng.normal(size=400)
    slope = fit_length_slope(margins, log_ratios, 1.0)
    assert slope == pytest.approx(0.7, abs=0.15)
    assert (margins - slope * log_ratios) @ log_ratios == pytest.approx(0.0, abs=1e-9)
    assert fit_length_slope(margins, log_ratios, 0.5) == pytest.approx(slope / 2)
    assert fit_length_slope(margins, log_ratios, 0.0) == 0.0
    assert fit_length_slope(np.ones(2), np.zeros(2), 1.0) == 0.0


def test_length_is_taken_back_as_far_as_pairs_that_length_does_not_decide_fit_better() -> None:
    rng = np.random.default_rng(2)
    log_ratios = rng.normal(size=4_000)
    quality = np.abs(rng.normal(size=4_000)) + 0.3  # what the chosen response is better by, whatever its length
    biased = quality + 0.8 * log_ratios
    assert bounded_length_slope(biased, log_ratios, 1.0) == pytest.approx(0.8, abs=0.15)
    assert bounded_length_slope(quality, log_ratios, 1.0) == pytest.approx(0.0, abs=0.05)
    deserved = np.where(log_ratios > 0, 1.0, -1.0) * 0.5 * log_ratios  # the further apart, the surer, on either side
    assert abs(bounded_length_slope(deserved, log_ratios, 1.0)) < 0.05


def test_bounds_are_the_lengths_of_training_without_its_outliers() -> None:
    lengths = [1, *range(20, 220), 9_000]
    assert seen_lengths(lengths) == LengthShare(0.0, 21, 218)
    assert seen_lengths([]) == NO_SHARE


def test_a_response_outside_the_bounds_counts_as_the_nearest_length() -> None:
    share = LengthShare(2.0, 10, 100)
    taken = share.of([of_length(n) for n in (1, 10, 50, 100, 3_000)])
    expected = [2 * math.log(n) for n in (10, 10, 50, 100, 100)]
    np.testing.assert_allclose(taken, expected)
    np.testing.assert_allclose(share.ratios([of_length(n) for n in (1, 10, 50, 5)]), [0.0, math.log(5)])


def test_training_and_serving_take_off_the_same() -> None:
    share = LengthShare(0.7, 8, 64)
    calibration = share.calibration(scale=2.0, offset=-1.0)
    assert LengthShare.of_calibration(calibration) == share
    for tokens in (1, 8, 30, 64, 500):
        (taken,) = share.of([of_length(tokens)])
        assert calibration.score(3.0, tokens) == pytest.approx(2.0 * (3.0 - taken) - 1.0)


def test_nothing_is_taken_off_without_a_slope() -> None:
    assert LengthShare(0.0, 8, 64).calibration() == Calibration()
    assert LengthShare.of_calibration(None) == NO_SHARE
