"""How far people lean is known as well as their number allows, also if all of them choose alike."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.audit.judged import Judged
from rewardloop_trainer.audit.leanings import Leaning, lean_to_first, lean_to_longer
from rewardloop_trainer.audit.model_figures import measure_model
from rewardloop_trainer.data.preferences import Pair

Floats = npt.NDArray[np.float64]


def people(first: int, of: int, choices: int = 1) -> list[Judged]:
    """So many people, of whom the first few always choose what is shown first and longer, and the others never."""
    found = []
    for i in range(of * choices):
        person = i % of
        is_so = person < first
        gesture = Gesture(f"e{i}", f"p{person}", "human", "", i, None, is_so, is_so, "", 10, i, i)
        found.append(Judged((), (), gesture, "choice", ("all",), True))
    return found


def chances(cases: int, share: float) -> Floats:
    """The probability of each number of people, (cases + 1,)."""
    return np.array([math.comb(cases, k) * share**k * (1 - share) ** (cases - k) for k in range(cases + 1)])


def beyond(found: list[Leaning], alpha: float) -> Floats:
    return np.array([each.is_beyond(alpha) for each in found], dtype=np.float64)


# The levels of an audit of one bias, of ten and of sixty.
LEVELS = (0.05, 0.05 / 10, 0.05 / 60)


@pytest.mark.parametrize("number", [8, 10, 12, 20, 40])
def test_people_without_a_leaning_to_the_first_are_taken_to_lean_as_seldom_as_an_audit_says(number: int) -> None:
    """Computed over all outcomes: eight people who all choose alike are one outcome in 128, and no proof of ten."""
    found = [lean_to_first(people(k, number)) for k in range(number + 1)]
    for alpha in LEVELS:
        assert chances(number, 0.5) @ beyond(found, alpha) <= alpha
    assert chances(number, 0.95) @ beyond(found, LEVELS[0]) > (0.6 if number == 8 else 0.85)


@pytest.mark.parametrize(("number", "others"), [(8, 8), (8, 20), (12, 30)])
def test_people_who_choose_the_longer_as_often_as_others_are_taken_to_lean_as_seldom(number: int, others: int) -> None:
    of_others = [people(j, others) for j in range(others + 1)]
    found = [[lean_to_longer(people(k, number), each) for each in of_others] for k in range(number + 1)]
    for alpha in LEVELS:
        named = np.array([beyond(row, alpha) for row in found])
        for share in (0.05, 0.3, 0.5, 0.8, 0.95, 0.99):
            assert chances(number, share) @ named @ chances(others, share) <= alpha


@pytest.mark.parametrize(("share", "base"), [(0.5, 0.5), (0.9, 0.5), (0.97, 0.6), (0.2, 0.6), (0.95, 0.95)])
def test_the_interval_of_a_leaning_holds_it(share: float, base: float) -> None:
    held = np.zeros((13, 21))
    for k in range(13):
        for j in range(21):
            found = lean_to_longer(people(k, 12), people(j, 20)).leaning
            is_held = found.lower <= (share - base) / (1 - base) <= found.upper
            held[k, j] = is_held or math.isnan(found.value)  # nothing is said if the others always choose the longer
    assert chances(12, share) @ held @ chances(20, base) >= 0.95


@pytest.mark.parametrize("choices", [1, 40])
def test_people_who_all_choose_alike_lean_by_an_interval_that_narrows_with_their_number(choices: int) -> None:
    lower = [lean_to_first(people(n, n, choices)).leaning.lower for n in (8, 20, 200)]
    assert lower == sorted(lower)
    assert 0 < lower[0] < 0.5
    assert lower[2] < 1
    away = lean_to_first(people(0, 8, choices)).leaning
    assert (away.value, away.lower, away.upper) == pytest.approx((-1.0, -1.0, -lower[0]))


def test_nothing_is_said_of_few_people_or_against_others_who_leave_no_choice() -> None:
    assert math.isnan(lean_to_first(people(3, 3)).leaning.value)
    assert not lean_to_first(people(7, 7)).is_beyond(0.5)
    assert math.isnan(lean_to_longer(people(8, 8), people(8, 8)).leaning.value)
    nearly = lean_to_longer(people(0, 8), people(8, 9))
    assert nearly.leaning.value == pytest.approx(-8.0)
    assert nearly.leaning.lower == -math.inf
    assert nearly.leaning.upper < 0


def test_a_model_that_is_wrong_on_all_pairs_of_few_prompts_is_not_shown_to_be() -> None:
    """Twenty pairs of two prompts, all alike, are two cases; of twenty prompts they are enough."""

    def always_longer(prompts: int) -> tuple[list[Pair], Floats]:
        pairs = [Pair((Turn("user", f"q{i % prompts}"),), "short", "the longer one") for i in range(20)]
        return pairs, np.full(len(pairs), -1.0)

    few, many = (measure_model(*always_longer(n)) for n in (2, 20))
    for found in (few, many):
        assert (found.beyond_length.mean, found.fondness.mean) == (-0.5, 1.0)
    assert not few.is_below_baseline(0.05)
    assert not few.is_fonder_than_people(0.05, 0.05)
    assert -1 <= few.longer_beyond_people.lower < 0.05
    assert many.is_below_baseline(0.05)
    assert many.is_fonder_than_people(0.05, 0.05)
    assert many.longer_beyond_people.lower < many.longer_beyond_people.upper == 1
