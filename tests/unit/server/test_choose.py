"""Which candidates are shown: expected information by hand, and probabilities that are the true ones."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop_server.generate.choose import Choice, choose_best, choose_pair, choose_uniform, expected_information
from rewardloop_server.scoring.engine import Floats


def heads(*rows: list[float]) -> Floats:
    return np.array(rows, dtype=np.float32)


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


# The heads disagree about 0 and 1, and agree about 2, which all put far below.
DISAGREED = heads([1.0, 0.0], [0.0, 1.0], [-9.0, -9.0])


def test_heads_of_opposite_opinions_by_hand() -> None:
    log3 = math.log(3)  # sigmoid(log 3) = 3/4: one head says 3/4, the other 1/4
    gain = expected_information(heads([log3, 0.0], [0.0, log3]))
    assert gain[0, 1] == pytest.approx(math.log(2) - entropy(0.75), abs=1e-6)
    assert gain[0, 1] == pytest.approx(0.130812, abs=1e-6)


def test_heads_that_are_sure_and_disagree_give_a_whole_bit_and_those_that_agree_none() -> None:
    gain = expected_information(heads([50.0, -50.0], [-50.0, 50.0], [50.0, -50.0]))
    assert gain[0, 1] == pytest.approx(math.log(2))
    # An even comparison on which all heads agree that it is even teaches nothing.
    assert gain[0, 2] == 0
    assert expected_information(heads([700.0, 700.0], [-700.0, -700.0]))[0, 1] == 0


def test_three_heads_by_hand() -> None:
    # Differences log 3, log 3 and -log 3: the mean probability is 7/12.
    log3 = math.log(3)
    gain = expected_information(heads([log3, log3, 0.0], [0.0, 0.0, log3]))
    assert gain[0, 1] == pytest.approx(entropy(7 / 12) - entropy(0.75), abs=1e-6)


@given(st.lists(st.lists(st.floats(-60, 60, width=32), min_size=3, max_size=3), min_size=2, max_size=6))
def test_information_is_symmetric_and_between_none_and_a_bit(rows: list[list[float]]) -> None:
    gain = expected_information(heads(*rows))
    assert np.allclose(gain, gain.T, atol=1e-9)
    assert gain.min() >= 0
    assert gain.max() <= math.log(2) + 1e-12
    assert np.allclose(np.diag(gain), 0)


def test_the_pair_that_tells_most_is_shown_and_its_probabilities_are_by_hand() -> None:
    # A third of 0.3 for each of three pairs, and 0.7 more for the best.
    informative = next(c for c in draws(0.3, 200) if not c.is_random)
    assert informative.shown == (0, 1)
    assert informative.set_probability == pytest.approx(0.8)
    assert informative.show_probabilities == pytest.approx((0.9, 0.9))
    other = next(c for c in draws(0.3, 200) if c.shown == (1, 2))
    assert other.is_random
    assert other.set_probability == pytest.approx(0.1)
    assert other.show_probabilities == pytest.approx((0.9, 0.2))
    assert other.information < informative.information


def test_sets_are_shown_as_often_as_they_say() -> None:
    seen = Counter(c.shown for c in draws(0.3, 6000))
    stated = {c.shown: c.set_probability for c in draws(0.3, 200)}
    assert set(seen) == set(stated)
    assert sum(stated.values()) == pytest.approx(1)
    for shown, count in seen.items():
        assert count / 6000 == pytest.approx(stated[shown], abs=0.025)


def test_weighing_by_the_probability_gives_back_what_uniform_pairs_would_measure() -> None:
    worth = {(0, 1): 1.0, (0, 2): 5.0, (1, 2): -3.0}
    chosen = draws(0.5, 20_000)
    estimate = sum(worth[c.shown] / c.set_probability / 3 for c in chosen) / len(chosen)
    assert estimate == pytest.approx(1.0, abs=0.15)


def test_one_head_knows_no_difference_so_every_pair_is_as_likely() -> None:
    seen = [choose_pair(heads([1.0], [5.0], [2.0]), 0.0, Random(i)) for i in range(60)]
    assert {c.shown for c in seen} == {(0, 1), (0, 2), (1, 2)}
    assert all(c.set_probability == pytest.approx(1 / 3) for c in seen)
    assert all(c.show_probabilities == pytest.approx((2 / 3, 2 / 3)) for c in seen)


def test_uniform_sets_are_equally_likely() -> None:
    seen = [choose_uniform(DISAGREED, 2, Random(i)) for i in range(60)]
    assert {c.shown for c in seen} == {(0, 1), (0, 2), (1, 2)}
    assert {(c.set_probability, c.show_probabilities, c.is_random) for c in seen} == {(1 / 3, (2 / 3, 2 / 3), True)}


def test_the_best_come_highest_first_and_of_equals_the_first() -> None:
    choice = choose_best([1.0, 3.0, 3.0, 2.0], 3)
    assert choice.shown == (1, 2, 3)
    assert (choice.set_probability, choice.show_probabilities) == (1.0, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_best_of_n_is_no_further_from_the_policy_than_its_bound(count: int) -> None:
    """Every draw of n from a policy of four answers: KL <= log n - (n - 1) / n, win rate <= n / (n + 1)."""
    policy, scores = [0.4, 0.3, 0.2, 0.1], [0.1, 0.9, 0.4, 0.7]
    best = [0.0] * 4
    for drawn in itertools.product(range(4), repeat=count):
        shown = choose_best([scores[i] for i in drawn], 1).shown[0]
        best[drawn[shown]] += math.prod(policy[i] for i in drawn)
    kl = sum(b * math.log(b / p) for b, p in zip(best, policy, strict=True))
    assert kl <= math.log(count) - (count - 1) / count + 1e-12
    wins = sum(
        best[i] * policy[j] * ((scores[i] > scores[j]) + 0.5 * (i == j))
        for i, j in itertools.product(range(4), repeat=2)
    )
    assert 0.5 - 1e-12 <= wins <= count / (count + 1) + 1e-12


def draws(random_share: float, count: int) -> list[Choice]:
    chance = Random(7)
    return [choose_pair(DISAGREED, random_share, chance) for _ in range(count)]
