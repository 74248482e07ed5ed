"""Of many tests those stand that Holm's procedure rejects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rewardloop_trainer.audit.holm import holm


def at(p: float) -> Callable[[float], bool]:
    return lambda alpha: p <= alpha


@pytest.mark.parametrize(
    ("probabilities", "stand"),
    [
        ([0.01, 0.04, 0.03, 0.005], {0, 3}),  # the textbook's example: 0.0125, 0.0167, and 0.03 is above 0.025
        ([0.012, 0.016, 0.024, 0.05], {0, 1, 2, 3}),  # one after the other
        ([0.02, 0.03], {0, 1}),
        ([0.026, 0.03], set()),
        ([], set()),
    ],
)
def test_what_stands_is_what_holm_rejects(probabilities: list[float], stand: set[int]) -> None:
    assert holm([at(p) for p in probabilities], 0.05) == stand


def test_any_of_many_true_hypotheses_is_rejected_as_seldom_as_said() -> None:
    chance = np.random.default_rng(0)
    wrong = sum(bool(holm([at(p) for p in chance.random(30)], 0.05)) for _ in range(2_000))
    assert 60 <= wrong <= 140  # 100 are expected, and their deviation is 10
