"""Rows of data sets become the signals they mean, or a RowError that says why not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardloop_client._rules import event_violations
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import events_of
from rewardloop_data.rows import RowError, parse_line

_DATA = Path(__file__).parents[3] / "../shared/data"
_USER = {"role": "user", "content": "q"}
_SYSTEM = {"role": "system", "content": "be nice"}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _one(row):
    (event,) = events_of(row, Labels())
    return event


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [_USER], "chosen": [_assistant("good")], "rejected": [_assistant("bad")]},
        {"prompt": [_USER], "chosen": [_USER, _assistant("good")], "rejected": [_USER, _assistant("bad")]},
        {"chosen": [_USER, _assistant("good")], "rejected": [_USER, _assistant("bad")]},
        {"prompt": "q", "chosen": [_USER, _assistant("good")], "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "id": 3, "annotator": None},
    ],
)
def test_pairs_in_every_form_are_the_same_choice(row) -> None:
    event = _one(row)
    assert event.prompt.text == "q"
    assert list(event.responses) == ["good", "bad"]
    assert (event.choice.chosen, event.choice.rejected) == (0, 1)


def test_a_conversation_keeps_its_turns() -> None:
    earlier = [_SYSTEM, _USER, _assistant("what?"), {"role": "user", "content": "that"}]
    event = _one({"chosen": [*earlier, _assistant("good")], "rejected": [*earlier, _assistant("bad")]})
    roles = [m.role for m in event.prompt.conversation.messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert list(event.responses) == ["good", "bad"]


def test_rankings_keep_their_order() -> None:
    event = _one({"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1], "annotator": "w"})
    assert list(event.ranking.order) == [2, 0, 1]
    assert event.annotator_id == "w"


def test_a_chosen_index_beats_each_other_response() -> None:
    events = events_of({"prompt": "q", "responses": ["a", "b", "c"], "chosen": 1}, Labels())
    assert [(e.choice.chosen, e.choice.rejected) for e in events] == [(1, 0), (1, 2)]


def test_each_annotation_is_a_signal_of_its_annotator() -> None:
    votes = [{"annotator": "x", "choice": 1}, {"annotator": "y", "choice": "tie"}, {"annotator": 7, "choice": 0}]
    events = events_of({"prompt": "q", "responses": ["a", "b"], "chosen": 1, "annotations": votes}, Labels())
    assert [e.WhichOneof("signal") for e in events] == ["choice", "tie", "choice"]
    assert [e.annotator_id for e in events] == ["x", "y", "7"]
    assert [e.choice.chosen for e in events] == [1, 0, 0]


@pytest.mark.parametrize(("label", "up"), [(True, True), (False, False), (1, True), (0, False)])
def test_a_label_is_a_thumb(label: object, up: bool) -> None:
    event = _one({"prompt": [_USER], "completion": [_assistant("a")], "label": label})
    assert (event.WhichOneof("signal"), event.thumb.up, list(event.responses)) == ("thumb", up, ["a"])


def test_votes_are_thumbs() -> None:
    events = events_of({"prompt": "q", "response": "a", "up": 2, "down": 1}, Labels())
    assert [e.thumb.up for e in events] == [True, True, False]
    assert len({e.event_id for e in events}) == 3


def test_labels_are_put_on_every_signal() -> None:
    event = events_of({"prompt": "q", "completion": "a", "label": 1}, Labels("implicit", {"lang": "de"}))[0]
    assert (event.source, dict(event.tags)) == (3, {"lang": "de"})


def test_the_same_row_has_the_same_id_however_it_is_written() -> None:
    first = parse_line(b'{"prompt": "q", "chosen": "\\u00e9", "rejected": "b"}')
    second = parse_line('{"rejected":"b","prompt":"q","chosen":"é","note":null}'.encode())
    other = {"prompt": "q", "chosen": "é", "rejected": "c"}
    assert _one(first).event_id == _one(second).event_id != _one(other).event_id
    assert len(_one(first).event_id) <= 128


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "a list"),
        (None, "absent"),
        ({}, "no known shape"),
        ({"prompt": "q"}, "no known shape"),
        ({"chosen": "a", "rejected": "b"}, "prompt: is absent"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt: is empty"),
        ({"prompt": "q", "chosen": " \n", "rejected": "b"}, "chosen: is empty"),
        ({"prompt": "q", "chosen": 5, "rejected": "b"}, "chosen: is a number"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": [_USER, _assistant("x")], "chosen": "a", "rejected": "b"}, "ends with the assistant"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "prompt: is empty"),
        ({"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"}, "role"),
        ({"prompt": [_USER], "chosen": [_assistant("a"), _USER], "rejected": "b"}, "not one assistant's turn"),
        ({"chosen": [_USER], "rejected": [_SYSTEM]}, "do not begin with the same prompt"),
        ({"chosen": [_USER, _assistant("a")], "rejected": [_USER, _assistant("a")]}, "are the same"),
        ({"prompt": "q", "responses": ["a", "b"], "ranking": [0, 0]}, "ranking"),
        ({"prompt": "q", "responses": ["a", "b"], "ranking": [True, False]}, "ranking"),
        ({"prompt": "q", "responses": ["a"], "ranking": [0]}, "ranking"),
        ({"prompt": "q", "responses": ["a", ""], "chosen": 0}, r"responses\[1\]: is empty"),
        ({"prompt": "q", "responses": ["a", "b"], "chosen": 2}, "chosen"),
        ({"prompt": "q", "responses": ["a", "b"], "chosen": True}, "chosen"),
        ({"prompt": "q", "responses": ["a"], "chosen": 0}, "no signal"),
        ({"prompt": "q", "responses": ["a", "b"], "annotations": [{"choice": 2}]}, "choice"),
        ({"prompt": "q", "responses": ["a", "b"], "annotations": [{"choice": 0, "annotator": 1.5}]}, "annotator"),
        ({"prompt": "q", "responses": ["a", "b"], "annotations": []}, "no signal"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "label"),
        ({"prompt": "q", "response": "a", "up": 0, "down": 0}, "no signal"),
        ({"prompt": "q", "response": "a", "up": -1}, "up"),
        ({"prompt": "q", "response": "a", "up": 10**9}, "up"),
        ({"prompt": "q", "chosen": "a\ud800", "rejected": "b"}, "surrogate"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "not a number"),
    ],
)
def test_what_is_no_signal_is_refused_with_its_reason(row, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        events_of(row, Labels())


@pytest.mark.parametrize(
    "line",
    [b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"nope"],
)
def test_a_line_that_is_not_json_is_refused(line: bytes) -> None:
    with pytest.raises(RowError):
        parse_line(line)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=4) | st.just("tie"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "annotator", "choice"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_keys = ["prompt", "chosen", "rejected", "responses", "ranking", "annotations", "completion", "label"]
_rows = st.dictionaries(st.sampled_from([*_keys, "response", "up", "down", "annotator", "other"]), _json)
_texts = st.text(alphabet="ab \ud800", max_size=3)
_near_rows = st.fixed_dictionaries(
    {"prompt": _texts | _json, "responses": st.lists(_texts, max_size=3) | _json},
    optional={"ranking": st.permutations([0, 1]) | _json, "chosen": st.integers(-1, 3), "annotations": _json},
)


@settings(max_examples=300, deadline=None)
@given(_rows | _near_rows | _json)
def test_any_row_is_either_valid_signals_or_a_row_error(row) -> None:
    try:
        events = events_of(row, Labels())
    except RowError:
        return
    assert events
    assert len({event.event_id for event in events}) == len(events)
    for event in events:
        assert not list(event_violations(event, event.responses))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_line_is_either_json_or_a_row_error(line: bytes) -> None:
    try:
        json.dumps(parse_line(line))
    except RowError:
        return


@pytest.mark.skipif(not _DATA.is_dir(), reason="the shared test data is not here")
@pytest.mark.parametrize(
    "name", ["alpacaeval_test", "oasst100_rankings", "gsm8k_solutions_dev_pairs", "pandalm_annotations"]
)
def test_real_data_sets_are_read_whole_but_for_rows_with_an_empty_text(name: str) -> None:
    with gzip.open(_DATA / f"{name}.jsonl.gz") as lines:
        rows = [parse_line(line) for line in lines]
    readable = [row for row in rows if "" not in row.get("responses", [])]
    assert len(readable) > 0.9 * len(rows)  # 30 of PandaLM's 482 rows have an empty response
    events = [event for row in readable for event in events_of(row, Labels())]
    assert len(events) == sum(len(row.get("annotations", "1")) for row in readable)
    assert not any(list(event_violations(event, event.responses)) for event in events)
    for row in rows:
        if row not in readable:
            with pytest.raises(RowError, match="is empty"):
                events_of(row, Labels())


@pytest.mark.parametrize(("grade", "chosen", "strength"), [(-3, 0, 1.0), (-1, 0, 1 / 3), (2, 1, 2 / 3), (3, 1, 1.0)])
def test_a_grade_becomes_a_choice_with_its_strength(grade: int, chosen: int, strength: float) -> None:
    plain = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": grade}
    messages = [{"role": "user", "content": "q"}]
    talk = {"context": messages, "response1": "a", "response2": "b", "overall_preference": grade}
    for row in (plain, talk):
        (event,) = events_of(row, Labels())  # type: ignore[arg-type]
        assert (event.prompt.text or event.prompt.conversation.messages[0].content) == "q"
        assert list(event.responses) == ["a", "b"]
        assert (event.choice.chosen, event.choice.rejected) == (chosen, 1 - chosen)
        assert event.choice.strength == pytest.approx(strength)


def test_a_grade_of_zero_is_a_tie_and_a_grade_off_the_scale_is_refused() -> None:
    row = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}
    (event,) = events_of(row, Labels())  # type: ignore[arg-type]
    assert event.WhichOneof("signal") == "tie"
    for grade in (-100, 4, 1.5, True, "2"):
        with pytest.raises(RowError, match="preference_strength: is"):
            events_of({**row, "preference_strength": grade}, Labels())  # type: ignore[dict-item]


def test_a_pair_may_say_how_strong_it_is() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (silent,) = events_of(row, Labels())  # type: ignore[arg-type]
    assert not silent.choice.HasField("strength")
    (event,) = events_of({**row, "strength": 0.4}, Labels())
    assert event.choice.strength == 0.4
    for strength in (0, -0.5, 1.2, True, "much"):
        with pytest.raises(RowError, match="strength: is"):
            events_of({**row, "strength": strength}, Labels())
