"""A part of the training signals is taken apart, by which a run chooses its weights."""

from __future__ import annotations

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, Record
from rewardloop_trainer.data.split import side_of
from rewardloop_trainer.data.validation import LEAST_PAIRS, validation_part


def pair(question: str, signal: int) -> Pair:
    return Pair((Turn("user", question),), f"good {signal}", f"bad {signal}", event_id=f"e{signal}")


def test_no_question_is_on_both_sides() -> None:
    records: list[Record] = [pair(f"question {i % 200}", i) for i in range(1_000)]
    learned, apart = validation_part(records, 0.1)
    assert {r.prompt for r in learned}.isdisjoint(r.prompt for r in apart)
    assert sorted((*learned, *apart), key=lambda r: r.event_id) == sorted(records, key=lambda r: r.event_id)
    assert 50 <= len(apart) <= 150


def test_a_question_stays_on_its_side_when_signals_come_in() -> None:
    records: list[Record] = [pair(f"question {i % 200}", i) for i in range(1_000)]
    early, late = validation_part(records[:500], 0.1)[1], validation_part(records, 0.1)[1]
    assert {r.event_id for r in early} <= {r.event_id for r in late}


def test_it_is_another_draw_than_that_of_the_held_out_side() -> None:
    training: list[Record] = [pair(f"question {i}", i) for i in range(1_000)]
    training = [r for r in training if side_of(r.prompt[0].content, heldout_share=0.1) == "train"]
    assert validation_part(training, 0.1)[1]


def test_signals_about_few_questions_are_drawn_one_by_one_and_the_same_texts_together() -> None:
    records: list[Record] = [pair("tell a joke", i // 2) for i in range(1_000)]
    learned, apart = validation_part(records, 0.1)
    assert 40 <= len(apart) <= 160
    assert {r.event_id for r in learned}.isdisjoint(r.event_id for r in apart)


def test_nothing_is_taken_apart_that_would_be_too_little_to_choose_by() -> None:
    few: list[Record] = [pair(f"question {i}", i) for i in range(LEAST_PAIRS)]
    assert validation_part(few, 0.1) == (few, [])
    thumbs: list[Record] = [Labelled((Turn("user", f"question {i}"),), "ok", 1.0) for i in range(1_000)]
    assert validation_part(thumbs, 0.1) == (thumbs, [])
    many: list[Record] = [pair(f"question {i}", i) for i in range(1_000)]
    assert validation_part(many, 0.0) == (many, [])
