"""Where an answer stops, and what of it may be shown while it is sampled."""

from __future__ import annotations

import pytest

from rewardloop_policy.speech import Speech


def told(stop: list[str], texts: list[str]) -> tuple[list[str], list[bool], tuple[str, bool]]:
    """What is shown, whether each text so far ended the answer, and the whole answer."""
    shown: list[str] = []
    speech = Speech(stop, lambda candidate, text: shown.append(text))
    ended = []
    for text in texts:
        ended.append(speech.hear(0, text))
        if ended[-1]:
            break
    return shown, ended, speech.whole(0, text)


def test_text_is_shown_as_it_grows() -> None:
    assert told([], ["a", "ab", "ab c"])[0] == ["a", "b", " c"]


def test_an_unfinished_character_is_held_back() -> None:
    assert told([], ["a\ufffd", "a\ufffd\ufffd", "aé"])[0] == ["a", "é"]


def test_what_may_begin_a_stop_text_is_held_back_until_it_does_not() -> None:
    shown, ended, whole = told(["\n\nUser"], ["Hi", "Hi\n", "Hi\n\n", "Hi\n\nUs", "Hi\n\nUs all"])
    assert shown == ["Hi", "\n\nUs all"]
    assert not any(ended)
    assert whole == ("Hi\n\nUs all", False)


@pytest.mark.parametrize("stop", [["END"], ["ND", "END"], ["never", "END"]])
def test_the_answer_ends_before_the_first_stop_text(stop: list[str]) -> None:
    shown, ended, whole = told(stop, ["say ", "say E", "say END more", "unheard"])
    assert ended == [False, False, True]
    assert "".join(shown) == "say "
    assert whole == ("say ", True)


def test_a_stop_text_that_comes_only_at_the_end_counts() -> None:
    shown: list[str] = []
    speech = Speech([" END"], lambda candidate, text: shown.append(text))
    assert not speech.hear(0, "say")
    assert speech.whole(0, "say END") == ("say", True)
    assert shown == ["say"]


def test_a_batch_that_is_sampled_again_shows_nothing_twice() -> None:
    shown: list[tuple[int, str]] = []
    speech = Speech([], lambda candidate, text: shown.append((candidate, text)))
    for _ in range(2):
        for candidate in range(2):
            speech.hear(candidate, "a")
            speech.hear(candidate, "ab")
    speech.whole(0, "abc")
    assert shown == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (0, "c")]
