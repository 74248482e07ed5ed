"""How a shadow's order of a group is compared with the one that was given out."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from rewardloop.formats.manifest import reads_alike
from rewardloop.formats.store import Manifest
from rewardloop_server.scoring.shadow import best, pair_agreement
from rewardloop_server.versions.residents import position


def test_pairs_are_counted_by_whether_both_order_them_alike() -> None:
    assert pair_agreement([1.0, 2.0, 3.0], [10.0, 20.0, 15.0]) == {"agree": 2, "disagree": 1}
    assert pair_agreement([1.0, 1.0], [0.0, 5.0]) == {"agree": 0, "disagree": 0}
    assert pair_agreement([1.0], [2.0]) == {"agree": 0, "disagree": 0}


def test_every_order_agrees_with_itself_and_with_its_reverse_in_nothing() -> None:
    for order in permutations([0.0, 1.0, 2.0, 3.0]):
        assert pair_agreement(order, order) == {"agree": 6, "disagree": 0}
        assert pair_agreement(order, [-score for score in order]) == {"agree": 0, "disagree": 6}


def test_best_is_the_first_of_equals() -> None:
    assert best([0.5, 2.0, 2.0, -1.0]) == 1


def test_same_tokenizer_text_format_and_length_read_alike() -> None:
    one = Manifest(model="reward", files={"tokenizer.json": "a", "model.onnx": "1"}, text_format={"pad": 0})
    assert reads_alike(one, Manifest(model="reward", files={"tokenizer.json": "a"}, text_format={"pad": 0}))
    for other in (
        Manifest(model="reward", files={"tokenizer.json": "b"}, text_format={"pad": 0}),
        Manifest(model="reward", files={"tokenizer.json": "a"}, text_format={"pad": 1}),
        Manifest(model="reward", files={"tokenizer.json": "a"}, text_format={"pad": 0}, max_length=7),
    ):
        assert not reads_alike(one, other)


@given(st.binary())
def test_position_is_a_number_from_0_to_below_1(key: bytes) -> None:
    assert 0 <= position(key, "canary") < 1
    assert position(key, "canary") == position(key, "canary")


def test_positions_are_even_and_those_of_two_purposes_independent() -> None:
    keys = [f"prompt {i}".encode() for i in range(20_000)]
    canary = [position(key, "canary") for key in keys]
    shadow = [position(key, "shadow") for key in keys]
    for share in (0.01, 0.3, 0.9):
        assert abs(sum(p < share for p in canary) / len(keys) - share) < 0.015
    both = sum(a < 0.3 and b < 0.3 for a, b in zip(canary, shadow, strict=True)) / len(keys)
    assert abs(both - 0.09) < 0.01
