"""One person's signals weigh no more in training than a bound says."""

from __future__ import annotations

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.influence import cap_influence
from rewardloop_trainer.data.preferences import Pair


def choices(counts: dict[str, int]) -> list[Pair]:
    return [
        Pair((Turn("user", "q"),), "a", "b", 1.0, f"{who}/{i}", annotator=who)
        for who, count in counts.items()
        for i in range(count)
    ]


def weights(counts: dict[str, int], share: float) -> dict[str, float]:
    capped = cap_influence(choices(counts), share)
    return {who: sum(r.weight for r in capped if r.annotator == who) for who in counts}


def test_an_annotator_with_most_signals_is_bounded_and_others_are_left_alone() -> None:
    counts = {"keen": 900, **{f"u{i}": 10 for i in range(40)}}
    found = weights(counts, 0.1)
    assert found["keen"] == pytest.approx(130)
    assert found["u0"] == 10


def test_of_few_annotators_each_may_have_twice_the_mean() -> None:
    assert weights({"a": 80, "b": 10, "c": 10, "d": 20}, 0.1) == pytest.approx({"a": 60, "b": 10, "c": 10, "d": 20})


@pytest.mark.parametrize("counts", [{"": 50}, {"": 10, "alone": 90}, {"a": 5, "b": 5}])
def test_nothing_changes_without_two_people_or_without_a_heavy_one(counts: dict[str, int]) -> None:
    records = choices(counts)
    assert cap_influence(records, 0.1) == records
