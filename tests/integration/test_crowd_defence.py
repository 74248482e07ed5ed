"""A reward model keeps what it learned from honest people when others spam, lie or push a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.crowd_worlds import Crowd, World, learned, trusted, undefended

pytestmark = [pytest.mark.learning, pytest.mark.long]


def test_spammers_and_liars_cost_little_of_the_gain(tmp_path: Path) -> None:
    world = World(0, pairs=800)
    honest = world.accuracy(*learned(world, undefended(world, world.judged(Crowd()), tmp_path), tmp_path))
    assert honest > 0.75  # there is something to lose
    for crowd in (Crowd(spammers=0.4), Crowd(liars=0.1)):
        kept = world.accuracy(*learned(world, trusted(world, world.judged(crowd), tmp_path), tmp_path))
        assert kept - 0.5 >= 0.9 * (honest - 0.5)


def test_a_pushed_word_moves_less_than_a_third_as_far(tmp_path: Path) -> None:
    world = World(0, pairs=800)
    before = world.entity_effect(*learned(world, undefended(world, world.judged(Crowd()), tmp_path), tmp_path))
    events = world.judged(Crowd(pushers=6))
    moved, held = (
        world.entity_effect(*learned(world, defence(world, events, tmp_path), tmp_path)) - before
        for defence in (undefended, trusted)
    )
    assert moved > 0.1  # the attack works
    assert abs(held) < moved / 3
