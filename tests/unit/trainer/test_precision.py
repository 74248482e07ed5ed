"""What a conversion to another precision must keep, and how weights become 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.export.precision import LEAST_PAIRS, PrecisionChoice, accuracy_difference, agreement, judge
from rewardloop_trainer.export.weight_rounding import LIMIT, PAIR_LIMIT, round_weights


def _pairs(count: int) -> list[Pair]:
    return [Pair((Turn("user", f"question {i}"),), "yes", "no") for i in range(count)]


def test_agreement_is_the_share_of_pairs_in_the_same_order() -> None:
    assert agreement(np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.1, -9.0, -0.5, 3.0])) == 0.75


def test_a_tie_agrees_only_with_a_tie() -> None:
    assert agreement(np.array([0.0, 0.0]), np.array([0.0, 1e-9])) == 0.5


def test_margins_that_differ_in_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="number"):
        agreement(np.zeros(3), np.zeros(2))


def test_one_changed_order_in_two_hundred_is_accepted_and_two_are_not() -> None:
    margins = np.random.default_rng(0).normal(size=LEAST_PAIRS)
    margins[:2] = 0.001, -0.001  # one right and one wrong: changing both leaves the accuracy as it was
    one, two = margins.copy(), margins.copy()
    one[1:2] *= -1
    two[:2] *= -1
    figures, reasons = judge(_pairs(LEAST_PAIRS), margins, one)
    assert (figures["precision_agreement"], reasons) == (0.995, ())
    figures, reasons = judge(_pairs(LEAST_PAIRS), margins, two)
    assert figures["precision_agreement"] == 0.99
    assert len(reasons) == 1
    assert "0.9900" in reasons[0]


def test_accuracy_that_falls_beyond_noise_is_a_reason() -> None:
    margins = np.full(2 * LEAST_PAIRS, 1.0)
    worse = margins.copy()
    worse[::10] = -1.0
    _, reasons = judge(_pairs(len(margins)), margins, worse)
    assert any("accuracy" in r for r in reasons)


def test_the_interval_of_an_accuracy_lost_is_over_prompts() -> None:
    # 80 of 400 orders change, from right to wrong: -0.2, standard error sqrt(0.2 * 0.8 / 400) = 0.02.
    was, now = np.ones(400), np.where(np.arange(400) < 80, -1.0, 1.0)
    apart = accuracy_difference(_pairs(400), now, was)
    assert apart.mean == pytest.approx(-0.2)
    assert (apart.lower(0.025), apart.upper(0.025)) == pytest.approx((-0.24, -0.16), abs=0.002)
    together = accuracy_difference([_pairs(10)[i // 40] for i in range(400)], now, was)
    assert together.mean == pytest.approx(-0.2)
    assert together.error > 3 * apart.error


def test_the_interval_of_an_accuracy_lost_misses_the_truth_in_about_a_twentieth_of_cases() -> None:
    # 200 conversions no better or worse than float32.
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        converted, float32 = (generator.random((2, 150)) < 0.7) - 0.5
        found = accuracy_difference(_pairs(150), converted, float32)
        missed += not found.lower(0.025) <= 0 <= found.upper(0.025)
    assert 2 <= missed <= 22


def test_too_few_pairs_prove_nothing() -> None:
    figures, reasons = judge(_pairs(LEAST_PAIRS - 1), np.ones(LEAST_PAIRS - 1), np.ones(LEAST_PAIRS - 1))
    assert figures == {}
    assert str(LEAST_PAIRS) in reasons[0]


def test_margins_that_are_not_finite_are_refused() -> None:
    margins = np.ones(LEAST_PAIRS)
    _, reasons = judge(_pairs(LEAST_PAIRS), margins, np.where(np.arange(LEAST_PAIRS) < 3, np.nan, margins))
    assert reasons == (f"3 of {LEAST_PAIRS} margins are not finite",)


def test_the_manifest_says_why_the_wanted_precision_was_not_taken() -> None:
    assert PrecisionChoice("float32", {}, ("too far off",)).notes("int8") == {
        "precision": "int8 was refused: too far off"
    }
    assert PrecisionChoice("int8", {}, ()).notes("int8") == {}


@pytest.mark.parametrize("rows", [96, 97])
@pytest.mark.parametrize("is_pair_limited", [True, False])
@pytest.mark.parametrize("is_correlated", [True, False])
def test_integers_keep_within_what_the_processor_can_add(rows: int, is_pair_limited: bool, is_correlated: bool) -> None:
    generator = np.random.default_rng(rows)
    weights = (generator.standard_t(3, size=(rows, 40))).astype(np.float32)
    inputs = generator.normal(size=(400, rows)) @ generator.normal(size=(rows, rows))
    integers, steps = round_weights(
        weights, inputs.T @ inputs if is_correlated else None, is_pair_limited=is_pair_limited
    )
    size = np.abs(integers.astype(int))
    assert size.max() <= LIMIT
    if is_pair_limited:
        pairs = size[: rows // 2 * 2].reshape(-1, 2, 40).sum(1)
        assert pairs.max() <= PAIR_LIMIT
        # The worst that AVX2's 16-bit sums can meet, for activations of 8 bits.
        assert 255 * pairs.max() < 2**15
    if not is_correlated:
        assert np.abs(integers * steps - weights).max() <= 1.01 * steps.max()


def test_rounding_that_knows_the_inputs_changes_the_output_less() -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(128, 64)).astype(np.float32)
    inputs = generator.normal(size=(1000, 12)) @ generator.normal(size=(12, 128)) + 0.1 * generator.normal(
        size=(1000, 128)
    )
    errors = []
    for gram in (None, inputs.T @ inputs):
        integers, steps = round_weights(weights, gram, is_pair_limited=True)
        errors.append(float(np.square(inputs @ (integers * steps - weights)).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_layer_of_zeros_stays_zero() -> None:
    integers, steps = round_weights(np.zeros((32, 32), dtype=np.float32), np.zeros((32, 32)), is_pair_limited=True)
    assert not integers.any()
    assert np.isfinite(steps).all()
