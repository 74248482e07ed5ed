"""The side of a question, which depends on its text alone."""

from __future__ import annotations

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.split import QuestionKeys, keys_of, normalised, prompt_key, side_of


def test_the_split_gives_the_asked_shares() -> None:
    sides = [side_of(f"question {i}", heldout_share=0.2, judge_share=0.3) for i in range(5_000)]
    assert 900 < sides.count("heldout") < 1_100  # 1,000 expected, standard deviation 28
    assert 1_400 < sides.count("judge") < 1_600


@pytest.mark.parametrize("side", ["heldout", "judge"])
def test_a_growing_share_moves_keys_from_training_alone(side: str) -> None:
    shares = {"heldout_share": 0.1, "judge_share": 0.1}
    before = {i: side_of(f"question {i}", **shares) for i in range(1_000)}
    after = {i: side_of(f"question {i}", **(shares | {f"{side}_share": 0.3})) for i in range(1_000)}
    moved = {(before[i], after[i]) for i in before if before[i] != after[i]}
    assert moved == {("train", side)}


def test_the_side_of_a_key_never_changes() -> None:
    # Fixed values: another hash would leak held-out questions into training after an upgrade.
    assert [side_of(f"question {i}", heldout_share=0.5) for i in range(6)] == [
        *("heldout", "heldout", "heldout", "heldout", "train", "train")
    ]


def test_a_salt_gives_an_independent_split() -> None:
    keys = [f"question {i}" for i in range(4_000)]
    both = sum(side_of(k, heldout_share=0.5) == side_of(k, heldout_share=0.5, salt="judge") for k in keys)
    assert 1_850 < both < 2_150  # 2,000 expected, standard deviation 32


@pytest.mark.parametrize(
    "variant",
    [
        "Is it a café",
        "  is it\ta CAFE\u0301? ",
        "Is it a café.",
        "«Is it a café?!»",
        "- Is it a café …",
        "is it a café？",
    ],
)
def test_case_white_space_unicode_form_and_punctuation_at_the_ends_do_not_count(variant: str) -> None:
    assert normalised(variant) == "is it a café"


def test_a_text_of_punctuation_alone_keeps_it() -> None:
    assert (normalised(" ? "), normalised("...")) == ("?", "...")
    assert normalised("C++ or C#?") != normalised("C or C?")


def test_keys_are_the_first_and_last_turn_of_the_user() -> None:
    system, first, answer, last = (
        Turn("system", "Today is 2026-01-01."),
        Turn("user", "First?"),
        Turn("assistant", "An answer."),
        Turn("user", "Last?"),
    )
    assert keys_of((first,)) == QuestionKeys("first", "first")
    assert keys_of((system, first)) == keys_of((first,))
    assert keys_of((system, first, answer, last)) == QuestionKeys("first", "last")
    assert keys_of((system,)) == QuestionKeys("today is 2026-01-01", "today is 2026-01-01")


def test_tools_that_are_spelled_otherwise_are_the_same_prompt() -> None:
    def key(tools: str) -> bytes:
        return prompt_key((Turn("tools", tools), Turn("user", "a")))

    spelled = key('[{"name": "f", "strict": true, "description": "é"}]')
    assert key('[{"description":"\\u00e9","name":"f","strict":true}]') == spelled
    assert key('[{"name": "g", "strict": true, "description": "é"}]') != spelled
