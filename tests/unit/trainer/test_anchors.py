"""Where the anchors of a version come from, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.reward_bases import encoder_for

from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, Record
from rewardloop_trainer.reward.anchors import (
    ANCHORS,
    LEAST_ANCHORS,
    Anchor,
    CorruptAnchors,
    UnusableAnchors,
    anchors_of_round,
    anchors_to_export,
    check_anchors,
    choose_anchors,
    distinct_count,
    read_anchors,
    readable,
    shipped_anchors,
    write_anchors,
)


def records(count: int, start: int = 0) -> list[Record]:
    return [Pair((Turn("user", f"question {i // 3}"),), f"good {i}", f"bad {i}") for i in range(start, start + count)]


def given(count: int) -> tuple[Anchor, ...]:
    return tuple(Anchor((Turn("user", f"q{i}"),), f"a{i}") for i in range(count))


@pytest.fixture
def encoder() -> Encoder:
    return encoder_for("llama", max_length=96)


def test_anchors_are_distinct_spread_over_prompts_and_independent_of_order() -> None:
    signals = [*records(300), Labelled((Turn("user", "question 0"),), "good 0", 1.0)]
    chosen = choose_anchors(signals, limit=120)
    assert chosen == choose_anchors(signals[::-1], limit=120)
    assert len(set(chosen)) == len(chosen) == 120
    assert len({a.prompt for a in chosen}) == 100  # all prompts, before any prompt's second response


def test_the_shipped_anchors_are_varied_and_enough_even_without_system_turns_or_dialogues(encoder: Encoder) -> None:
    shipped = shipped_anchors()
    assert len(set(shipped.anchors)) == len(shipped.anchors) == 96
    simple = [a for a in shipped.anchors if [t.role for t in a.prompt] == ["user"]]
    assert distinct_count(readable(encoder, simple)) >= LEAST_ANCHORS
    lengths = sorted(len(a.response) for a in shipped.anchors)
    assert lengths[0] <= 10
    assert lengths[-1] >= 300


def test_an_export_takes_the_user_s_file_or_else_the_shipped_anchors(tmp_path: Path, encoder: Encoder) -> None:
    write_anchors(tmp_path / "own.jsonl", given(64))
    own = anchors_to_export(tmp_path / "own.jsonl")
    assert own.anchors == given(64)
    assert str(own).startswith("64 given (sha256 ")
    check_anchors(tmp_path / "own.jsonl", own, encoder)
    assert anchors_to_export(None) == shipped_anchors()
    assert str(shipped_anchors()).startswith("96 shipped (sha256 ")


@pytest.mark.parametrize(
    ("own", "read"),
    [
        (given(63), 63),
        (given(1) * 200, 1),
        (tuple(Anchor((Turn("user", "q"),), "x" * 500 + str(i)) for i in range(90)), 1),  # cut to the same tokens
    ],
)
def test_a_user_s_file_of_too_few_distinct_anchors_is_refused(
    tmp_path: Path, encoder: Encoder, own: tuple[Anchor, ...], read: int
) -> None:
    path = tmp_path / "own.jsonl"
    write_anchors(path, own)
    with pytest.raises(UnusableAnchors, match=f"reads {read} distinct anchors of {len(own)}, and a scale needs 64 or"):
        check_anchors(path, anchors_to_export(path), encoder)


def test_the_anchors_of_the_live_version_come_before_those_of_the_work_directory(
    tmp_path: Path, encoder: Encoder
) -> None:
    live, work = tmp_path / "live", tmp_path / "work"
    write_anchors(live / ANCHORS, given(70))
    write_anchors(work / ANCHORS, given(90))
    found = anchors_of_round(work, live, records(100), encoder)
    assert found.anchors == given(70)
    assert found.is_kept_with_version
    write_anchors(live / ANCHORS, shipped_anchors().anchors)
    assert anchors_of_round(work, live, records(100), encoder) == shipped_anchors()


def test_the_work_directory_s_anchors_go_on_if_the_live_version_has_none_however_few(
    tmp_path: Path, encoder: Encoder
) -> None:
    write_anchors(tmp_path / ANCHORS, given(12))
    found = anchors_of_round(tmp_path, tmp_path / "live", records(100), encoder)
    assert found.anchors == given(12)
    assert found.least == 2
    assert not found.is_kept_with_version


def test_the_first_choice_from_signals_is_kept_for_good_and_in_no_version(tmp_path: Path, encoder: Encoder) -> None:
    first = anchors_of_round(tmp_path, None, records(40), encoder)
    assert len(first.anchors) == 80
    assert not first.is_kept_with_version
    assert "chosen from signals" in str(first)
    again = anchors_of_round(tmp_path, tmp_path / "live", records(30, start=1_000), encoder)
    assert again.anchors == first.anchors


def test_too_few_signals_fix_no_scale(tmp_path: Path, encoder: Encoder) -> None:
    long = "x" * 500
    alike = [Pair((Turn("user", "q"),), f"{long}{i}", f"{long}{i}!") for i in range(100)]
    for signals in ([], records(31), alike):
        assert anchors_of_round(tmp_path, None, signals, encoder) == shipped_anchors()
        assert not (tmp_path / ANCHORS).exists()


def test_any_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = Anchor((Turn("system", "\u2028 line\n"), Turn("user", '"日本"\r\n🙂')), "tab\t\u0085 end")
    write_anchors(tmp_path / "a.jsonl", [odd, odd])
    assert read_anchors(tmp_path / "a.jsonl") == (odd, odd)


@pytest.mark.parametrize("row", ["{", '{"prompt": []}', "[]", '{"prompt": [{"role": "user"}], "response": "x"}'])
def test_a_damaged_anchor_file_is_an_error_and_stays(tmp_path: Path, encoder: Encoder, row: str) -> None:
    path = tmp_path / ANCHORS
    path.write_text('{"prompt": [{"role": "user", "content": "q"}], "response": "x"}\n' + row + "\n")
    with pytest.raises(CorruptAnchors, match="row 2"):
        anchors_of_round(tmp_path, None, records(3), encoder)
    assert row in path.read_text()


def test_a_prompt_may_be_a_text_or_messages_with_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    named = [{"role": "user", "content": "q", "name": "Ann"}]
    path.write_text("".join(json.dumps({"prompt": p, "response": "x"}) + "\n" for p in ("q", parts, named)))
    plain = Anchor((Turn("user", "q"),), "x")
    assert read_anchors(path) == (plain, plain, Anchor((Turn("user", "q", name="Ann"),), "x"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": 3, "response": "x"}, "prompt: is a number, not text"),
        ({"prompt": "q", "response": ["x"]}, "response: is a list, not text"),
        ({"prompt": [{"role": "user"}], "response": "x"}, "prompt\\[0\\]: is not a {role, content} message"),
        ({"question": "q", "response": "x"}, "is not an object with a prompt and a response"),
    ],
)
def test_a_row_that_is_no_anchor_is_named_with_its_reason(tmp_path: Path, row: object, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(CorruptAnchors, match=f"row 1: {reason}"):
        read_anchors(path)
