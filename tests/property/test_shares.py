"""Shares of a queue, whoever asks for what: bounded, never nothing for a newcomer, and equal for those who persist."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop_server.scoring.shares import Shares

BOUND = 1_000


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3_000), st.booleans()), max_size=80),
)
def test_the_queue_is_bounded_and_a_newcomer_always_has_room(steps) -> None:
    shares, held = Shares(), []
    for caller, tokens, gives_back in steps:
        if gives_back and held:
            shares.give_back(*held.pop(0))
        elif shares.has_room(caller, tokens, BOUND):
            shares.hold(caller, tokens, BOUND)
            held.append((caller, tokens))
        by_caller: Counter[str] = Counter()
        for name, count in held:
            by_caller[name] += count
        large = [count for count in by_caller.values() if count > 0.75 * BOUND]
        assert len(large) <= 1
        assert sum(by_caller.values()) - sum(large) <= BOUND
        assert shares.total == sum(by_caller.values())
        if len(by_caller) <= 4:
            assert shares.has_room("newcomer", 1, BOUND)
    for each in held:
        shares.give_back(*each)
    assert shares.total == 0
    assert shares.has_room("anybody", 750, BOUND)


def test_a_group_beyond_any_share_leaves_room_for_others() -> None:
    shares = Shares()
    shares.hold("giant", 50_000, BOUND)
    assert not shares.has_room("giant", 1, BOUND)
    assert not shares.has_room("another giant", 50_000, BOUND)
    assert shares.has_room("small", 100, BOUND)
    shares.give_back("giant", 50_000)
    assert shares.has_room("another giant", 50_000, BOUND)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 3_000), st.booleans(), st.floats(10.0, 1_000.0)), max_size=80
    )
)
def test_a_newcomer_has_room_however_much_smaller_the_bound_has_become(steps) -> None:
    shares, held = Shares(), []
    for caller, tokens, gives_back, bound in steps:
        if gives_back and held:
            shares.give_back(*held.pop(0))
        elif shares.has_room(caller, tokens, bound):
            shares.hold(caller, tokens, bound)
            held.append((caller, tokens))
        assert shares.total == sum(count for _, count in held)
        assert shares.has_room("newcomer", 1, 1_000)
    for each in held:
        shares.give_back(*each)
    assert shares.has_room("anybody", 750, BOUND)


def test_tokens_that_came_while_the_engine_was_fast_do_not_refuse_others_when_it_is_slow() -> None:
    shares = Shares()
    shares.hold("fast", 700, BOUND)
    assert shares.has_room("other", 20, 100)
    assert not shares.has_room("other", 30, 100)
    assert not shares.has_room("fast", 10, 100)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_callers_that_keep_asking_come_to_equal_shares(count: int) -> None:
    shares, held = Shares(), {str(i): 0 for i in range(count)}
    bound = 100_000
    for turn in range(4_000):
        for name in held:
            if held[name] and turn % 2:
                shares.give_back(name, min(100, held[name]))
                held[name] -= min(100, held[name])
            while shares.has_room(name, 50, bound):
                shares.hold(name, 50, bound)
                held[name] += 50
    fair = 3 * bound / (1 + 3 * count)
    assert min(held.values()) >= 0.8 * fair
    assert max(held.values()) <= 1.25 * fair
