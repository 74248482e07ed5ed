"""The side of a signal: one for a conversation, a question and its near-duplicates, and never another one later."""

from __future__ import annotations

import random
from collections import Counter

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.pools.database import Database
from rewardloop_trainer.data.pools.near_duplicates import SIMILARITY, shingles, similarity, sketch_of
from rewardloop_trainer.data.pools.sides import FEW, Sides, split_at_once
from rewardloop_trainer.data.preferences import Pair, Prompt
from rewardloop_trainer.data.split import Side, side_of

SHARE = 0.3
WORDS = [f"word{i}" for i in range(3_000)]


def sides(few: int = 0) -> Sides:
    return Sides(Database(None).connection, SHARE, 0.0, few)


def asked(*texts: str) -> Prompt:
    """A conversation of these questions, each but the last with an answer."""
    turns = [t for text in texts for t in (Turn("user", text), Turn("assistant", "So."))]
    return tuple(turns[:-1])


def on(side: Side, start: int = 0) -> str:
    """A question that is by itself on this side."""
    texts = (f"something entirely of number {i}" for i in range(start, start + 1_000))
    return next(text for text in texts if side_of(text, heldout_share=SHARE) == side)


def test_a_near_duplicate_is_on_the_side_of_the_question_that_came_first() -> None:
    found = sides()
    chance = random.Random(1)
    moved = 0
    for _ in range(300):
        words = chance.sample(WORDS, 30)
        side = found.place(asked(" ".join(words))).side
        nearly = " ".join([*words, "please"])
        assert similarity(shingles(" ".join(words)), shingles(nearly)) >= SIMILARITY
        moved += found.place(asked(nearly)).side != side
    assert moved == 0


def are_near(one: str, other: str) -> bool:
    sketch, its = sketch_of(one), sketch_of(other)
    return bool(set(sketch.bands) & set(its.bands)) and sketch.is_near(its.low)


def test_texts_that_are_not_alike_are_not_near() -> None:
    chance = random.Random(2)
    alike = 0
    for _ in range(300):
        words = chance.sample(WORDS, 20)
        other = [*words[:12], *chance.sample(WORDS, 8)]  # similarity about 0.4
        alike += are_near(" ".join(words), " ".join(other))
    assert alike == 0


def test_variants_of_a_template_are_questions_of_their_own() -> None:
    found = sides()
    texts = [f"please explain the topic number {i} to me" for i in range(500)]
    assert 0.6 < similarity(shingles(texts[0]), shingles(texts[1])) < 0.7
    placed = [found.place(asked(text)).side for text in texts]
    assert found.groups > 480
    assert 100 < placed.count("heldout") < 200


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "请写一首关于大海和古老灯塔守护人的短诗并且说明他为什么一直住在那里没有离开过"
    other = text.replace("短诗", "小诗")
    assert similarity(shingles(text), shingles(other)) > 0.8
    assert are_near(text, other)


def test_later_turns_are_on_the_side_of_their_conversation() -> None:
    found = sides()
    placed = [
        (found.place(asked(f"root of {i}")).side, found.place(asked(f"root of {i}", f"then {i}")).side)
        for i in range(200)
    ]
    assert all(first == second for first, second in placed)
    assert 30 < sum(first == "heldout" for first, _ in placed) < 90


def test_a_later_question_takes_its_own_conversation_with_it() -> None:
    found = sides()
    held = on("heldout")
    assert found.place(asked(held, "what comes after that")).side == "heldout"
    assert found.place(asked("what comes after that")).side == "heldout"


def test_a_follow_up_of_both_sides_is_in_training_from_then_on() -> None:
    found = sides()
    held, trained = on("heldout"), on("train")
    assert found.place(asked(held, "tell me more")).side == "heldout"
    placed = found.place(asked(held, "tell me more"))
    assert found.still_apart(asked(held, "tell me more"), placed.root, placed.last)
    assert found.place(asked(trained, "tell me more")).side == "train"
    assert not found.still_apart(asked(held, "tell me more"), placed.root, placed.last)
    assert found.place(asked(held, "tell me more")).side is None
    assert found.place(asked(held)).side == "heldout"


def test_a_signal_that_ties_a_held_out_question_to_training_is_left_out() -> None:
    found = sides()
    held, trained = on("heldout"), on("train")
    assert (found.place(asked(held)).side, found.place(asked(trained)).side) == ("heldout", "train")
    assert found.place(asked(trained, held)).side is None
    assert found.place(asked(held, trained)).side is None
    assert (found.place(asked(held)).side, found.place(asked(trained)).side) == ("heldout", "train")


def test_a_question_near_two_sides_is_left_out_and_moves_neither() -> None:
    for start in range(0, 400, 40):  # the words decide the sides of the ends of a chain: take one with two sides
        words = [f"w{i}" for i in range(start, start + 40)]
        one, middle, other = (" ".join(words[i : i + 34]) for i in (0, 3, 6))
        ends = [side_of(text, heldout_share=SHARE) for text in (one, other)]
        if set(ends) == {"train", "heldout"} and similarity(shingles(one), shingles(other)) < 0.75:
            break
    found = sides()
    placed = [found.place(asked(text)).side for text in (one, other, middle, middle, one, other)]
    assert placed in ([*ends, None, None, *ends], [ends[0], ends[0], *[ends[0]] * 4])


def test_no_signal_ever_changes_its_side() -> None:
    chance = random.Random(3)
    roots = [" ".join(chance.sample(WORDS, 12)) for _ in range(200)]
    follow_ups = [f"follow up {i}" for i in range(20)]
    talks = [
        asked(chance.choice(roots), *chance.sample([*follow_ups, *roots], chance.randrange(3))) for _ in range(3_000)
    ]
    found = sides()
    was: dict[Prompt, Side | None] = {}
    trained: set[str] = set()
    for talk in talks:
        side = found.place(talk).side
        if talk in was and was[talk] is not None and side is not None:
            assert (was[talk], side) in {("train", "train"), ("heldout", "heldout")}
        was.setdefault(talk, side)
        if side == "train":
            trained |= {talk[0].content, talk[-1].content}
    apart = [talk for talk, side in was.items() if side == "heldout"]
    kept = [talk for talk in apart if found.still_apart(talk, (p := found.place(talk)).root, p.last)]
    assert len(kept) > 20
    assert not [talk for talk in kept if {talk[0].content, talk[-1].content} & trained]


def test_the_first_questions_are_split_pair_by_pair() -> None:
    found = sides(FEW)
    pairs = [Pair(asked("the only question"), f"good {i}", f"bad {i}") for i in range(1_000)]
    placed = [found.place(pair.prompt, pair) for pair in pairs]
    assert all(each.by_pair for each in placed)
    assert 250 < sum(each.side == "heldout" for each in placed) < 350
    turned = [Pair(pair.prompt, pair.rejected, pair.chosen) for pair in pairs]
    assert [found.place(pair.prompt, pair).side for pair in turned] == [each.side for each in placed]
    for i in range(FEW):
        found.place(asked(f"another question of kind {i}"))
    assert not found.place(asked("yet another one")).by_pair
    assert found.place(pairs[0].prompt, pairs[0]) == placed[0]


def test_second_turns_of_the_first_questions_are_split_pair_by_pair_too() -> None:
    found = sides(few=1)
    first, trained = asked("the first question", "tell me more"), asked(on("train"), "tell me more")
    pairs = [Pair(first, f"good {i}", f"bad {i}") for i in range(200)]
    assert {found.place(first, pair).side for pair in pairs} == {"train", "heldout"}
    assert found.place(trained).side == "train"
    assert {found.place(first, pair).side for pair in pairs} == {"train", "heldout"}


def test_a_file_is_split_by_question_or_if_they_are_few_by_pair() -> None:
    many = [(asked(f"question {i % 50}"), Pair(asked(f"question {i % 50}"), f"a{i}", f"b{i}")) for i in range(500)]
    found = split_at_once(many, SHARE)
    by_question = {
        prompt: {side for (each, _), side in zip(many, found, strict=True) if each == prompt} for prompt, _ in many
    }
    assert all(len(each) == 1 for each in by_question.values())
    few = [(asked(f"question {i % 3}"), Pair(asked(f"question {i % 3}"), f"a{i}", f"b{i}")) for i in range(500)]
    assert 100 < Counter(split_at_once(few, SHARE))["heldout"] < 200
