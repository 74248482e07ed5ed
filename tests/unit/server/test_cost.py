"""The constants are found again from exact timings, and stay usable on noisy ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop_server.scoring.cost import CostModel, Timing, fit

SHAPES = ((1, 16), (8, 16), (1, 128), (8, 64), (1, 512))


def timed(cost: CostModel, noise: float = 0.0) -> list[Timing]:
    draw = np.random.default_rng(0)
    return [Timing(b, s, cost.run_s(b, s) * (1 + noise * draw.uniform())) for b, s in SHAPES]


@pytest.mark.parametrize("cost", [CostModel(1e-3, 1e-4, 1e-7), CostModel(2e-3, 1e-4, 0.0), CostModel(1e-3, 0.0, 1e-6)])
def test_exact_timings_give_the_constants(cost: CostModel) -> None:
    found = fit(timed(cost))
    np.testing.assert_allclose(
        (found.fixed_s, found.per_token_s, found.per_token2_s),
        (cost.fixed_s, cost.per_token_s, cost.per_token2_s),
        rtol=1e-6,
        atol=1e-12,
    )


def test_noisy_timings_give_constants_within_the_noise() -> None:
    cost = CostModel(1e-3, 1e-4, 1e-7)
    found = fit(timed(cost, noise=0.3))
    for b, s in SHAPES:
        assert found.run_s(b, s) == pytest.approx(1.15 * cost.run_s(b, s), rel=0.3)


def test_constants_are_never_negative_and_a_run_is_never_free() -> None:
    falling = fit([Timing(1, 16, 0.01), Timing(1, 128, 0.005), Timing(1, 512, 0.004)])
    assert falling.fixed_s > 0
    assert falling.per_token_s >= 0
    assert falling.per_token2_s >= 0
    assert fit([Timing(1, 16, 1e-9)]).fixed_s > 0


def test_fit_without_a_timing_is_refused() -> None:
    with pytest.raises(ValueError, match="no timing"):
        fit([Timing(1, 16, 0.0)])


@pytest.mark.parametrize("cost", [CostModel(1e-3, 1e-4, 1e-7), CostModel(1e-3, 1e-4, 0.0), CostModel(1e-3, 0.0, 1e-7)])
def test_longest_row_within_a_limit_costs_the_limit(cost: CostModel) -> None:
    assert cost.run_s(1, cost.longest(0.05)) == pytest.approx(0.05)
    assert cost.longest(cost.fixed_s / 2) == 0
    assert cost.longest(math.inf) == math.inf
