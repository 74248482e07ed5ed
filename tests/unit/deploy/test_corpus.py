"""The demo's corpus: enough question types, one right fact each, a clean split, and the mix of styles it promises."""

import random
from collections import Counter

import pytest

from rewardloop_local import corpus


def test_there_are_hundreds_of_question_types_with_distinct_questions() -> None:
    intents = corpus.intents()
    texts = [q.text for side in (True, False) for q in corpus.questions(0, held_out=side)]
    assert len({(i.topic, i.aspect) for i in intents}) == len(intents) >= 250
    assert len({corpus.normalise(t) for t in texts}) == len(texts) == 7 * len(intents)


def test_no_value_of_an_aspect_hides_in_another() -> None:
    for intent in corpus.intents():
        for value in intent.values:
            inside = [v for v in intent.values if v != value and corpus.normalise(value) in corpus.normalise(v)]
            assert inside == [], (intent.aspect, value)


def test_wrong_facts_differ_from_the_right_one_and_from_each_other() -> None:
    for intent in corpus.intents():
        assert len({intent.right, *intent.wrong}) == 3
        assert {intent.right, *intent.wrong} <= set(intent.values)


def test_held_out_questions_are_unseen_but_their_question_types_are_known() -> None:
    train = corpus.questions(0)
    held_out = corpus.questions(0, held_out=True)
    assert {q.text for q in train}.isdisjoint(q.text for q in held_out)
    assert {q.intent for q in held_out} == {q.intent for q in train} == set(corpus.intents())


def test_the_split_is_the_same_for_every_seed() -> None:
    first, second = corpus.questions(1, held_out=True), corpus.questions(2, held_out=True)
    assert {q.text for q in first} == {q.text for q in second}
    assert [q.text for q in first] != [q.text for q in second]


def test_an_answer_has_the_style_that_was_asked_for() -> None:
    rng = random.Random(0)
    said = corpus.phrases()
    for question in corpus.questions(0)[:300]:
        intent = question.intent
        right = corpus.answer(question, corpus.Style(right=True, tone="plain"), rng)
        wrong = corpus.answer(question, corpus.Style(right=False, tone="plain"), rng)
        assert intent.right in right
        assert not any(v in wrong for v in (intent.right,))
        assert any(v in wrong for v in intent.wrong)
        curt = corpus.answer(question, corpus.Style(tone="curt"), rng)
        assert any(p in curt for p in (*said.curt_openings, *said.curt_closings))
        rambling = corpus.answer(question, corpus.Style(rambling=3), rng)
        assert sum(p in rambling for p in said.rambling) == 3


def test_answers_stay_within_8_to_60_words() -> None:
    words = [len(completion.split()) for _, completion in corpus.sft_examples(4_000, 3)]
    assert min(words) >= 8
    assert max(words) <= 60


def test_examples_mix_the_styles_in_the_promised_shares() -> None:
    rng = random.Random(0)
    questions = corpus.questions(0)
    styles = [corpus.random_style(q, rng) for q in questions * 3]
    share = Counter[str]()
    for style in styles:
        share["right"] += style.right
        share["polite"] += style.tone == "polite"
        share["rambling"] += style.rambling > 0
    assert share["right"] / len(styles) == pytest.approx(0.58, abs=0.03)
    assert share["polite"] / len(styles) == pytest.approx(0.4, abs=0.03)
    assert share["rambling"] / len(styles) == pytest.approx(0.35, abs=0.03)


def test_examples_never_use_a_held_out_question_and_repeat_for_a_seed() -> None:
    examples = corpus.sft_examples(4_000, 5)
    assert {prompt for prompt, _ in examples}.isdisjoint(q.text for q in corpus.questions(0, held_out=True))
    assert examples == corpus.sft_examples(4_000, 5)
    assert examples != corpus.sft_examples(4_000, 6)


def test_relevance_pairs_tell_topics_apart_and_nothing_about_correctness() -> None:
    pairs = corpus.relevance_pairs(2_000, 0)
    right = 0
    for pair in pairs:
        intent = corpus.question_of(pair.prompt).intent
        topic = corpus.normalise(intent.topic)
        assert topic in corpus.normalise(pair.better)
        assert topic not in corpus.normalise(pair.worse)
        right += intent.right in pair.better
    assert right / len(pairs) == pytest.approx(0.58, abs=0.05)
    _assert_styles_are_alike(pairs)


def test_right_pairs_tell_the_right_fact_and_nothing_about_style() -> None:
    pairs = corpus.right_pairs(2_000, 0)
    for pair in pairs:
        intent = corpus.question_of(pair.prompt).intent
        assert not corpus.question_of(pair.prompt).held_out
        assert corpus.normalise(intent.right) in corpus.normalise(pair.better)
        assert any(corpus.normalise(value) in corpus.normalise(pair.worse) for value in intent.wrong)
    _assert_styles_are_alike(pairs)
    words = [sum(len(getattr(p, side).split()) for p in pairs) for side in ("better", "worse")]
    assert words[0] == pytest.approx(words[1], rel=0.05)


def _assert_styles_are_alike(pairs: list[corpus.KnowledgePair]) -> None:
    for phrase in (*corpus.phrases().polite_openings, *corpus.phrases().curt_closings):
        sides = [sum(phrase in getattr(p, side) for p in pairs) for side in ("better", "worse")]
        assert abs(sides[0] - sides[1]) < 0.4 * sum(sides)


def test_a_prompt_is_found_whatever_its_case_and_an_unknown_one_is_an_error() -> None:
    question = corpus.questions(0)[0]
    assert corpus.question_of(question.text.upper() + " ") == question
    with pytest.raises(KeyError):
        corpus.question_of("What is the meaning of life?")
