"""People's judgements as pairs and as thumbs: one weight whatever the algorithm, and the most that one person has."""

from __future__ import annotations

from collections import Counter

import pytest

from rewardloop.formats.text import Turn
from rewardloop.formats.vocabulary import ALGORITHMS, Algorithm
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList
from rewardloop_trainer.policy.examples import (
    Examples,
    NothingToLearnFrom,
    choose_algorithm,
    pairs_from_thumbs,
    thumbs_from_pairs,
)


def asked(text: str) -> Prompt:
    return (Turn("user", text),)


def thumb(prompt: str, response: str, up: bool, weight: float = 1.0, annotator: str = "") -> Labelled:
    return Labelled(asked(prompt), response, float(up), weight, annotator=annotator)


def examples(pairs: int, thumbs: int, weight: float = 1.0) -> Examples:
    return Examples(
        (), [Pair(asked("q"), "a", "b", weight)] * pairs, [thumb(f"t{i}", "a", True) for i in range(thumbs)]
    )


def test_a_pair_is_two_thumbs_that_weigh_as_much_as_it() -> None:
    pair = Pair(asked("q"), "good", "bad", 0.5, "e1", {"k": "v"}, "ann", "implicit")
    found = thumbs_from_pairs([pair])
    assert [(t.response, t.label, t.weight) for t in found] == [("good", 1.0, 0.25), ("bad", 0.0, 0.25)]
    assert {(t.event_id, t.annotator, t.source, t.tags["k"]) for t in found} == {("e1", "ann", "implicit", "v")}


def test_opposite_thumbs_for_one_prompt_are_a_comparison() -> None:
    found = pairs_from_thumbs(
        [
            thumb("q", "good", True, annotator="ann"),
            thumb("q", "bad", False, annotator="ann"),
            thumb("alone", "x", True),
            thumb("same", "x", True),
            thumb("same", "x", False),
        ]
    )
    assert [(p.chosen, p.rejected, p.weight, p.annotator) for p in found] == [("good", "bad", 1.0, "ann")]


def test_every_thumb_is_used_and_the_rarer_kind_bounds_the_weight() -> None:
    ups = [thumb("q", f"up{i}", True, annotator="ann") for i in range(4)]
    downs = [thumb("q", "down0", False, 0.5), thumb("q", "down1", False, 0.5)]
    found = pairs_from_thumbs([*ups, *downs])
    assert Counter(p.chosen for p in found) == {f"up{i}": 1 for i in range(4)}
    assert Counter(p.rejected for p in found) == {"down0": 2, "down1": 2}
    assert sum(p.weight for p in found) == pytest.approx(1.0)  # that of the two thumbs down
    assert {p.annotator for p in found} == {""}


def test_thumbs_of_no_weight_make_no_pair() -> None:
    assert pairs_from_thumbs([thumb("q", "a", True, 0.0), thumb("q", "b", False, 0.0)]) == []


def test_examples_hold_both_kinds_of_both() -> None:
    found = Examples.of([RankedList(asked("q"), ("a", "b", "c")), thumb("t", "x", True), thumb("t", "y", False)])
    assert [(p.chosen, p.rejected) for p in found.all_as_pairs()] == [("a", "b"), ("a", "c"), ("b", "c"), ("x", "y")]
    assert sum(p.weight for p in found.all_as_pairs()) == pytest.approx(2)
    assert len(found.all_as_thumbs()) == 8
    assert sum(t.weight for t in found.all_as_thumbs()) == pytest.approx(3)


@pytest.mark.parametrize(
    ("given", "algorithm"),
    [
        (examples(3, 2), "dpo"),
        (examples(2, 2), "dpo"),
        (examples(2, 3), "kto"),
        (examples(0, 1), "kto"),
        (examples(4, 3, weight=0.5), "kto"),
    ],
)
def test_the_data_choose_by_weight(given: Examples, algorithm: str) -> None:
    assert choose_algorithm("auto", given) == algorithm


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_named_is_taken(name: Algorithm) -> None:
    assert choose_algorithm(name, examples(0, 0)) == name


def test_without_a_judgement_nothing_is_chosen_and_a_way_on_is_named() -> None:
    with pytest.raises(NothingToLearnFrom, match=r"no pair, no thumb and no rating .* grpo"):
        choose_algorithm("auto", examples(0, 0))
