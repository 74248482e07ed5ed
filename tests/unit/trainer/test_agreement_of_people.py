"""How far people agree, on data whose alpha is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.annotators.agreement import (
    agreement_by,
    agreement_of,
    agreement_of_grades,
    krippendorff,
    krippendorff_interval,
    self_consistency,
    self_consistency_of_grades,
    wilson,
)
from rewardloop_trainer.annotators.votes import grades_of, make_votes
from rewardloop_trainer.data.preferences import Labelled

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": two people with two values, two people with five, and
# four people of whom some did not say anything.
_BINARY = ["0100000010", "1110010000"]
_NOMINAL = ["aabbdcccedda", "babbbcccedd" + "d"]
_MISSING = ["123321412...", "12332241" + "25.3", ".33323422" + "51.", "12332441" + "251."]


def counts(said: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    values = sorted(set("".join(said)) - {"."})
    return np.array([[float(unit.count(value)) for value in values] for unit in zip(*said, strict=True)])


@pytest.mark.parametrize(("said", "alpha"), [(_BINARY, 0.095), (_NOMINAL, 0.692), (_MISSING, 0.743)])
def test_alpha_is_the_published_one(said: list[str], alpha: float) -> None:
    assert krippendorff(counts(said)).alpha == pytest.approx(alpha, abs=5e-4)


def grades(said: list[str]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    found = [(i, float(value)) for row in said for i, value in enumerate(row) if value != "."]
    return np.array([i for i, _ in found]), np.array([value for _, value in found])


@pytest.mark.parametrize(("said", "alpha"), [(_BINARY, 0.095), (_MISSING, 0.849)])
def test_alpha_of_values_on_a_scale_is_the_published_one(said: list[str], alpha: float) -> None:
    """0.849 is the interval alpha of the published data; of two values it is the nominal one."""
    found = krippendorff_interval(*grades(said))
    assert found.alpha == pytest.approx(alpha, abs=5e-4)
    item, value = grades(said)
    moved = krippendorff_interval(item, value / 4 + 1e6)
    assert moved.alpha == pytest.approx(found.alpha, abs=1e-6)
    assert found.lower < found.alpha < found.upper


def test_of_equal_values_no_agreement_is_known() -> None:
    assert math.isnan(krippendorff_interval(np.array([0, 0, 1, 1]), np.full(4, 0.1)).alpha)
    assert math.isnan(krippendorff(np.array([[2.0, 0.0], [3.0, 0.0]])).alpha)


def test_grades_of_named_people_agree_with_others_and_with_themselves() -> None:
    prompt = (Turn("user", "q"),)

    def grade(person: str, response: str, label: float) -> Labelled:
        return Labelled(prompt, response, label, annotator=person)

    said = [grade("a", "x", 0.0), grade("b", "x", 0.25), grade("a", "y", 1.0), grade("b", "y", 0.75)]
    earlier = [grade("a", "y", 0.0), grade("b", "y", 0.75)]  # the last grade of each person counts
    judge = replace(grade("judge", "x", 1.0), source="llm_judge")
    found = grades_of([*earlier, *said, judge, grade("", "x", 1.0)])
    alone = grades_of(said)
    assert (len(found), len(alone)) == (6, 4)
    assert agreement_of_grades(found).alpha == agreement_of_grades(alone).alpha == pytest.approx(1 - 0.125 / (5 / 6))
    again = self_consistency_of_grades(found)
    assert (again.same, again.repeats, again.people) == (0.5, 2, 2)
    assert math.isnan(self_consistency_of_grades(alone).same)


def test_the_interval_covers_the_true_alpha_as_often_as_it_says() -> None:
    """Two classes, people who are right with probability 0.8: two of them agree at 0.68, so that alpha is 0.36."""
    chance = np.random.default_rng(5)
    covered = 0
    for run in range(200):
        truth = chance.integers(0, 2, 150)
        right = chance.random((150, 4)) < 0.8
        firsts = np.where(truth[:, None] == 0, right, ~right).sum(1).astype(float)
        found = krippendorff(np.stack([firsts, 4 - firsts], axis=1), resamples=300, seed=run)
        covered += found.lower <= 0.36 <= found.upper
    assert covered >= 180  # 190 are expected; fewer than 180 happen once in 600


def test_the_interval_of_ratings_covers_the_true_alpha_as_often_as_it_says() -> None:
    """The variance of a rating is half that of what is rated and half noise, so that alpha is 0.5."""
    chance = np.random.default_rng(6)
    item = np.repeat(np.arange(150), 3)
    covered = 0
    for run in range(200):
        value = chance.normal(size=150)[item] + chance.normal(size=len(item))
        found = krippendorff_interval(item, value, resamples=300, seed=run)
        covered += found.lower <= 0.5 <= found.upper
    assert covered >= 180  # as above


@pytest.mark.parametrize("people", [2, 4])
@pytest.mark.parametrize("items", [20, 50, 200])
@pytest.mark.parametrize(("share", "right", "alpha"), [(0.5, 0.9924, 0.97), (0.5, 0.9743, 0.90), (0.9, 0.9972, 0.97)])
def test_the_interval_covers_the_true_alpha_if_people_nearly_always_agree(
    people: int, items: int, share: float, right: float, alpha: float
) -> None:
    """A share of the items is of one class, and people name an item's class with probability ``right``."""
    says_one = share * right + (1 - share) * (1 - right)
    truth = 1 - right * (1 - right) / (says_one * (1 - says_one))
    assert truth == pytest.approx(alpha, abs=1e-3)
    chance = np.random.default_rng(7)
    covered, known = 0, 0
    for run in range(100):
        is_one = chance.random((items, 1)) < share
        ones = np.where(is_one, chance.random((items, people)) < right, chance.random((items, people)) >= right).sum(1)
        found = krippendorff(np.stack([ones, people - ones], axis=1).astype(float), resamples=200, seed=run)
        known += math.isfinite(found.alpha)
        covered += found.lower <= truth <= found.upper
    assert covered >= 0.89 * known  # of 100, fewer than 89 are covered once in 200 if 95 are expected


@pytest.mark.parametrize("items", [2, 20, 200])
def test_people_who_always_agreed_may_still_disagree_on_other_items(items: int) -> None:
    """Half the items are of either class, so that chance would have two people disagree on about half of them."""
    first = np.array([3.0 * (i % 2) for i in range(items)])
    found = krippendorff(np.stack([first, 3 - first], axis=1))
    graded = krippendorff_interval(np.repeat(np.arange(items), 3), np.repeat(first / 3, 3))
    unseen = 1 - 0.025 ** (1 / items)
    by_chance = 0.5 * 3 * items / (3 * items - 1)
    assert (found.alpha, found.upper) == (1, 1)
    assert found.lower == pytest.approx(max(-1, 1 - unseen / by_chance))
    assert (graded.lower, graded.upper) == pytest.approx((found.lower, found.upper))


def test_people_who_never_agreed_may_still_agree_on_other_items() -> None:
    found = krippendorff(np.ones((20, 2)))
    assert found.lower <= found.alpha < found.upper


def test_of_one_item_no_interval_is_known() -> None:
    found = krippendorff(np.array([[2.0, 1.0]]))
    assert math.isfinite(found.alpha)
    assert math.isnan(found.lower)
    assert math.isnan(found.upper)


def test_nobody_agrees_where_nobody_was_asked_twice() -> None:
    found = agreement_of(make_votes([("a", 1, 0), ("b", 2, 1)]))
    assert math.isnan(found.alpha)
    assert (found.items, found.votes) == (0, 0)


def test_a_person_who_votes_twice_on_an_item_counts_once() -> None:
    once = [("a", 1, 0), ("b", 1, 0), ("a", 2, 1), ("b", 2, 0), ("a", 3, 1), ("b", 3, 1)]
    again = [("a", 2, 0), ("b", 3, 0), *once, ("a", 2, 1)]
    assert make_votes(again).is_last.tolist() == [False, False, True, True, False, True, True, True, True]
    assert agreement_of(make_votes(again)).alpha == agreement_of(make_votes(once)).alpha


def test_alpha_is_told_apart_by_slice() -> None:
    rows = [(who, ("easy", i), i % 2) for i in range(40) for who in "ab"]
    rows += [(who, ("hard", i), (i + (who == "b") * (i % 2)) % 2) for i in range(40) for who in "ab"]
    votes = make_votes(rows)
    found = agreement_by(votes, lambda place: [votes.items[int(votes.item[place])][0]])
    assert found["easy"].alpha == pytest.approx(1)
    assert found["hard"].alpha < 0.4
    assert found["hard"].lower < found["hard"].alpha < found["hard"].upper


def test_repeated_questions_tell_how_consistent_a_person_is() -> None:
    votes = make_votes([("a", 1, 0), ("a", 1, 0), ("a", 1, 1), ("b", 2, 1), ("b", 2, 1), ("c", 1, 0)])
    found = self_consistency(votes)
    assert (found.same, found.repeats, found.people) == (pytest.approx(2 / 3), 3, 2)
    assert 0 < found.lower < found.same < found.upper < 1


def test_wilsons_interval_is_the_known_one() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
