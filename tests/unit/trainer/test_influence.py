"""One person's signals weigh no more in training than a bound says."""

from __future__ import annotations

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.data.weights.influence import cap_influence


def choices(counts: dict[str, int]) -> list[Pair]:
    return [
        Pair((Turn("user", "q"),), "a", "b", 1.0, f"{who}/{i}", annotator=who)
        for who, count in counts.items()
        for i in range(count)
    ]


def shares(counts: dict[str, int], most: float) -> dict[str, float]:
    """The share of the total weight that each annotator is left with."""
    found = cap_influence(choices(counts), most)
    total = sum(p.weight for p in found)
    return {who: sum(p.weight for p in found if p.annotator == who) / total for who in counts}


def test_a_person_has_at_most_the_share_and_the_others_keep_their_weights() -> None:
    counts = {"loud": 900, "keen": 300, **{f"p{i}": 10 for i in range(40)}}
    found = shares(counts, 0.1)
    assert found["loud"] == pytest.approx(0.1)
    assert found["keen"] == pytest.approx(0.1)
    assert found["p0"] == pytest.approx(0.8 / 40)
    assert [p.weight for p in cap_influence(choices(counts), 0.1) if p.annotator == "p0"] == [1.0] * 10
    assert shares(counts, 1.0)["loud"] == pytest.approx(900 / 1600)


def test_of_a_few_people_one_has_at_most_twice_an_equal_share() -> None:
    assert shares({"a": 9, "b": 1}, 0.1)["a"] == pytest.approx(0.9)  # two may have all
    assert shares({"a": 96, **{f"p{i}": 1 for i in range(3)}}, 0.1)["a"] == pytest.approx(0.5)
    assert shares({"only": 5}, 0.1) == {"only": 1.0}


@pytest.mark.parametrize("counts", [{}, {"": 50}, {"": 10, "alone": 90}, {"a": 5, "b": 5}, {"": 90, "a": 5, "b": 5}])
def test_nothing_changes_without_two_people_or_without_a_heavy_one(counts: dict[str, int]) -> None:
    records = choices(counts)
    assert cap_influence(records, 0.1) == records
