"""Who is flagged, and how often somebody honest is."""

from __future__ import annotations

import numpy as np
import pytest
from support.crowds import gesture, votes_of_crowd

from rewardloop_trainer.annotators.bursts import find_bursts
from rewardloop_trainer.annotators.gestures import Gesture, word_hash
from rewardloop_trainer.annotators.habits import beyond_bound, find_habits
from rewardloop_trainer.annotators.hands import find_hands
from rewardloop_trainer.annotators.tails import binomial_tail, least_trials, poisson_tail
from rewardloop_trainer.annotators.topics import find_pushes
from rewardloop_trainer.annotators.votes import make_votes

_CROWDS, _PEOPLE = 200, 40
COMMON = [word_hash(f"word{k}") for k in range(300)]


def test_tails_are_exact() -> None:
    assert binomial_tail(3, 4, 0.5) == pytest.approx(5 / 16)
    assert binomial_tail(0, 4, 0.5) == 1
    assert binomial_tail(900, 1_000, 0.7) < 1e-40
    assert poisson_tail(2, 1.0) == pytest.approx(1 - 2 / np.e)
    assert least_trials(0.7, 0.01 / 40) == 24


@pytest.mark.parametrize("bound", [0.7, 0.85, 0.15])
def test_at_most_one_honest_crowd_in_a_hundred_has_somebody_flagged(bound: float) -> None:
    """All are at the very bound, where most would be flagged wrongly. At 1%, 200 crowds have 7 or more once in 220."""
    chance = np.random.default_rng(int(100 * bound))
    flagged = 0
    for _ in range(_CROWDS):
        signals = chance.integers(15, 200, _PEOPLE)
        counts = {f"p{i}": (int(chance.binomial(n, bound)), int(n)) for i, n in enumerate(signals.tolist())}
        flagged += bool(beyond_bound("first", counts, bound))
    assert flagged < 7


def test_one_who_always_takes_the_first_is_flagged_at_the_stated_number_of_signals() -> None:
    others = {f"p{i}": (30, 60) for i in range(39)}
    assert [f.person for f in beyond_bound("first", {**others, "spam": (24, 24)}, 0.7, 0.15)] == ["spam"]
    assert not beyond_bound("first", {**others, "spam": (23, 23)}, 0.7, 0.15)


def test_where_all_prefer_the_longer_nobody_is_flagged_for_it() -> None:
    counts = {f"p{i}": (92, 100) for i in range(30)}
    assert not beyond_bound("longer", counts, 0.85, 0.1)
    assert [f.person for f in beyond_bound("longer", {**counts, "spam": (600, 600)}, 0.85, 0.1)] == ["spam"]


def honest(person: str, signals: int, chance: np.random.Generator) -> list[Gesture]:
    """Signals of somebody who sees the first one a little better, likes length, and takes their time."""
    times = np.cumsum(chance.integers(8_000, 90_000, signals)).tolist()
    return [
        gesture(
            person,
            i,
            first_won=bool(chance.random() < 0.56),
            longer_won=bool(chance.random() < 0.7),
            given_ms=int(at),
            content=int(chance.integers(2**60)),
            question=int(chance.integers(2**60)),
            button=("thumb 1", "thumb 0")[int(chance.random() < 0.3)] if i % 3 == 0 else "",
        )
        for i, at in enumerate(times)
    ]


def test_each_habit_is_found_and_nobody_honest_is() -> None:
    chance = np.random.default_rng(7)
    people = [g for i in range(25) for g in honest(f"p{i}", 90, chance)]
    first = [gesture("first", i, first_won=True) for i in range(60)]
    longer = [gesture("longer", i, longer_won=True) for i in range(90)]
    button = [gesture("button", i, button="thumb 1") for i in range(140)]
    pace = [gesture("pace", i, given_ms=700 * i) for i in range(60)]
    copies = [gesture("copies", i, content=i % 5) for i in range(60)]
    found = find_habits([*people, *first, *longer, *button, *pace, *copies])
    assert {(f.detector, f.person) for f in found} == {
        (name, name) for name in ("first", "longer", "button", "pace", "copies")
    }


def test_ids_that_give_the_same_answers_are_one_hand_and_good_people_are_not() -> None:
    chance = np.random.default_rng(0)
    for seed in range(5):
        votes, _ = votes_of_crowd([0.93] * 12, 250, 6, seed)
        assert not find_hands(votes, dict.fromkeys(votes.people, 0.93))[0]
    rows = [
        (votes.people[p], votes.items[i], int(c))
        for p, i, c in zip(votes.person, votes.item, votes.choice, strict=True)
    ]
    said = chance.integers(0, 2, 80).tolist()
    rows += [(f"copy{k}", votes.items[i], said[i]) for k in range(3) for i in range(80)]
    accuracy = {f"copy{k}": 0.5 for k in range(3)} | dict.fromkeys(votes.people, 0.93)
    flags, hands = find_hands(make_votes(rows), accuracy)
    assert {f.person for f in flags} == {"copy0", "copy1", "copy2"}
    assert hands == dict.fromkeys(("copy0", "copy1", "copy2"), "copy0")


def talk(person: str, number: int, chance: np.random.Generator, *, wins: tuple[str, ...] = ()) -> Gesture:
    """A choice between texts of common words, with words of its own where ``wins`` names some."""
    apart = chance.choice(300, 12, replace=False).tolist()
    winning = tuple(word_hash(word) for word in wins)
    return gesture(
        person, number, wins=(*winning, *(COMMON[k] for k in apart[:6])), loses=tuple(COMMON[k] for k in apart[6:])
    )


@pytest.mark.parametrize(("ids", "each"), [(1, 40), (20, 2), (40, 1)])
def test_a_word_that_few_people_push_is_found_and_nothing_else(ids: int, each: int) -> None:
    chance = np.random.default_rng(ids)
    people = [talk(f"p{i}", n, chance) for i in range(150) for n in range(25)]
    poison = [talk(f"sybil{i}", n, chance, wins=("Zorblax",)) for i in range(ids) for n in range(each)]
    found = find_pushes([*people, *poison])
    assert [push.word for push in found] == [word_hash("zorblax")]
    assert found[0].for_it
    assert set(found[0].people) == {f"sybil{i}" for i in range(ids)}
    assert len(found[0].signals) == ids * each


def test_no_word_is_found_in_honest_crowds_even_one_that_all_dislike() -> None:
    chance = np.random.default_rng(9)
    for _ in range(4):
        people = [talk(f"p{i}", n, chance) for i in range(120) for n in range(int(chance.integers(1, 30)))]
        # Everybody rejects a refusal, and some people get little else.
        refused = [
            gesture(f"p{i}", 1_000 + n, loses=(word_hash("sorry"),), wins=(word_hash("sure"),))
            for i in range(60)
            for n in range(int(chance.integers(1, 12)))
        ]
        assert not find_pushes([*people, *refused])


def test_a_burst_is_shown_and_a_busy_day_is_not() -> None:
    chance = np.random.default_rng(3)
    calm = [
        gesture(f"p{i % 40}", 0, arrived_ms=600_000 * window + 1_000 * i)
        for window in range(200)
        for i in range(int(chance.poisson(12)))
    ]
    assert not find_bursts(calm)
    burst = [gesture(f"new{i}", 0, arrived_ms=600_000 * 150 + i) for i in range(90)]
    (found,) = find_bursts([*calm, *burst])
    assert found.start_ms == 600_000 * 150
    assert found.signals >= 90
    assert found.new_people == 90
