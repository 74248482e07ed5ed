"""Pairs weighed so that length says nothing about who won."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair
from rewardloop_trainer.data.weights.length_balance import balance_length, length_weights

PROMPT = (Turn("user", "q"),)


def test_share_of_each_outcome_is_one_half_after_weighing() -> None:
    ratios = np.array([math.log(2)] * 75 + [-math.log(2)] * 25)
    weights = length_weights(ratios)
    assert weights[0] == pytest.approx(0.5 / 0.75)
    assert weights[-1] == pytest.approx(0.5 / 0.25)
    assert weights[ratios > 0].sum() == pytest.approx(weights[ratios < 0].sum())


def test_longer_is_better_gains_nothing_at_any_difference() -> None:
    rng = random.Random(3)
    ratios = np.array([d if rng.random() < 0.5 + d / 6 else -d for d in (rng.uniform(0.05, 2) for _ in range(4000))])
    weights = length_weights(ratios)
    for low, high in ((0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)):
        near = (np.abs(ratios) >= low) & (np.abs(ratios) < high)
        share = weights[near & (ratios > 0)].sum() / weights[near].sum()
        assert share == pytest.approx(0.5, abs=0.05)


def test_weights_are_bounded_and_one_sided_data_is_left_alone() -> None:
    assert length_weights(np.array([0.5] * 99 + [-0.5])).max() == 5.0
    assert length_weights(np.array([0.5] * 20)).tolist() == [1.0] * 20
    assert length_weights(np.array([])).tolist() == []


def test_other_records_keep_their_place_and_weight() -> None:
    records = [
        Pair(PROMPT, "long answer", "short", weight=2.0),
        Labelled(PROMPT, "x", 1.0),
        Pair(PROMPT, "short", "long answer"),
        Pair(PROMPT, "long answer", "short"),
        Pair(PROMPT, "long answer", "short"),
    ]
    balanced = balance_length(records)
    assert balanced[1] == records[1]
    # The longer response won 2 + 1 + 1 of a weight of 5, and the shorter one 1.
    assert balanced[0].weight == pytest.approx(2.0 * 0.5 / (4 / 5))
    assert balanced[2].weight == pytest.approx(0.5 / (1 / 5))
    longer, shorter = (sum(balanced[i].weight for i in places) for places in ((0, 3, 4), (2,)))
    assert longer == pytest.approx(shorter)


@pytest.mark.parametrize("weight", [0.0, 1e-6])
def test_signals_that_weigh_nothing_say_nothing_of_length(weight: float) -> None:
    heard = [Pair(PROMPT, *texts) for texts in (("long answer", "short"), ("short", "long answer")) for _ in range(4)]
    muted = [Pair(PROMPT, "a far longer answer", "short", weight=weight) for _ in range(90)]
    balanced = balance_length([*heard, *muted])
    assert [each.weight for each in balanced[: len(heard)]] == pytest.approx([1.0] * len(heard), abs=1e-3)
