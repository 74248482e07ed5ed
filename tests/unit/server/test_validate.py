"""What a request must be, field by field."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from rewardloop.v1 import common_pb2, feedback_pb2, reward_pb2
from rewardloop_server.calls.errors import InvalidRequest
from rewardloop_server.calls.validate import Limits, validate_event, validate_score, validate_signal

LIMITS = Limits(max_text_bytes=100, max_responses=4, max_feedback_responses=3, max_messages=3)

Event = feedback_pb2.FeedbackEvent


def conversation(*turns: tuple[str, str]) -> common_pb2.Prompt:
    return common_pb2.Prompt(
        conversation=common_pb2.Conversation(messages=[common_pb2.Message(role=r, content=c) for r, c in turns])
    )


def text(content: str) -> common_pb2.Prompt:
    return common_pb2.Prompt(text=content)


def fields_of(check: Callable[[], None]) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        check()
    return [v.field for v in caught.value.violations]


def score_fields(prompt: common_pb2.Prompt, responses: list[str], **more: object) -> list[str]:
    request = reward_pb2.ScoreRequest(prompt=prompt, responses=responses, **more)  # type: ignore[arg-type]
    return fields_of(lambda: validate_score(request, LIMITS))


def event(**changes: object) -> Event:
    """A valid choice between two responses, but for ``changes``."""
    fields: dict[str, object] = {"event_id": "e1", "prompt": text("hi"), "responses": ["a", "b"]}
    if not {"choice", "ranking", "thumb", "rating", "edit", "tie"} & changes.keys():
        fields["choice"] = feedback_pb2.Choice(chosen=1, rejected=0)
    merged = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    return Event(**merged)  # type: ignore[arg-type]


def event_fields(**changes: object) -> list[str]:
    return fields_of(lambda: validate_event(event(**changes), LIMITS))


@pytest.mark.parametrize(
    "prompt",
    [
        text("hi"),
        text("ü" * 50),
        conversation(("user", "hi")),
        conversation(("system", "be kind"), ("user", "hi")),
        conversation(("user", "hi"), ("assistant", "hello"), ("user", "and?")),
        conversation(("system", "be kind")),
    ],
)
def test_sound_prompts_pass(prompt: common_pb2.Prompt) -> None:
    validate_score(reward_pb2.ScoreRequest(prompt=prompt, responses=["a", "b", "c", "d"]), LIMITS)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (common_pb2.Prompt(), "prompt"),
        (text(""), "prompt.text"),
        (text(" \n\t\u2003"), "prompt.text"),
        (text("x" * 101), "prompt.text"),
        (text("ü" * 51), "prompt.text"),
        (text("😀" * 26), "prompt.text"),
        (conversation(), "prompt.conversation.messages"),
        (conversation(*[("user", "hi")] * 4), "prompt.conversation.messages"),
        (conversation(("moderator", "hi")), "prompt.conversation.messages[0].role"),
        (conversation(("", "hi")), "prompt.conversation.messages[0].role"),
        (conversation(("user", "hi"), ("user", "")), "prompt.conversation.messages[1].content"),
        (conversation(("user", "hi"), ("assistant", "hello")), "prompt.conversation.messages[1].role"),
    ],
)
def test_bad_prompt_is_named(prompt: common_pb2.Prompt, field: str) -> None:
    assert score_fields(prompt, ["a"]) == [field]
    assert event_fields(prompt=prompt) == [field]


@pytest.mark.parametrize(
    ("responses", "fields"),
    [
        ([], ["responses"]),
        (["a"] * 5, ["responses"]),
        (["a"] * 10_000, ["responses"]),
        (["a", "", " ", "x" * 101], ["responses[1]", "responses[2]", "responses[3]"]),
    ],
)
def test_bad_responses_are_named(responses: list[str], fields: list[str]) -> None:
    assert score_fields(text("hi"), responses) == fields


def test_every_violation_of_a_group_is_found() -> None:
    assert score_fields(text(""), ["", "a"], lane=7, truncation=9, pin_version="") == [
        "prompt.text",
        "responses[0]",
        "lane",
        "truncation",
        "pin_version",
    ]


def test_violations_do_not_repeat_what_the_caller_wrote() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate_score(reward_pb2.ScoreRequest(prompt=conversation(("secret", "secret" * 100))), LIMITS)
    assert "secret" not in str(caught.value) + repr(caught.value.violations)


SOUND_SIGNALS: list[dict[str, object]] = [
    {"choice": feedback_pb2.Choice(chosen=0, rejected=1)},
    {"ranking": feedback_pb2.Ranking(order=[1, 0])},
    {"thumb": feedback_pb2.Thumb(response=1, up=False)},
    {"rating": feedback_pb2.Rating(response=0, value=5, minimum=1, maximum=5)},
    {"edit": feedback_pb2.Edit(response=0, edited_text="better")},
    {"tie": feedback_pb2.Tie(first=0, second=1)},
]


@pytest.mark.parametrize("signal", SOUND_SIGNALS, ids=lambda s: next(iter(s)))
def test_sound_signals_pass(signal: dict[str, object]) -> None:
    validate_event(event(**signal, tags={"team": ""}, annotator_id="ann", source=feedback_pb2.SOURCE_IMPLICIT), LIMITS)


@pytest.mark.parametrize("signal", SOUND_SIGNALS, ids=lambda s: next(iter(s)))
def test_sound_signals_pass_when_their_responses_are_filled_in(signal: dict[str, object]) -> None:
    named = event(generation_id="g1", prompt=None, responses=None, **signal)
    validate_event(named, LIMITS)
    named.responses.extend(["a", "b"])
    validate_signal(named, LIMITS)


BAD_SIGNALS = [
    (feedback_pb2.Choice(chosen=2, rejected=0), ["choice.chosen"]),
    (feedback_pb2.Choice(chosen=0, rejected=-1), ["choice.rejected"]),
    (feedback_pb2.Choice(chosen=1, rejected=1), ["choice.rejected"]),
    (feedback_pb2.Choice(), ["choice.rejected"]),
    (feedback_pb2.Ranking(order=[0]), ["ranking.order"]),
    (feedback_pb2.Ranking(order=[0, 0]), ["ranking.order"]),
    (feedback_pb2.Ranking(order=[0, 2]), ["ranking.order"]),
    (feedback_pb2.Ranking(order=[0, 1, 2]), ["ranking.order"]),
    (feedback_pb2.Thumb(response=2), ["thumb.response"]),
    (feedback_pb2.Rating(value=math.nan, minimum=0, maximum=1), ["rating.value"]),
    (feedback_pb2.Rating(value=0, minimum=-math.inf, maximum=math.inf), ["rating.minimum", "rating.maximum"]),
    (feedback_pb2.Rating(value=6, minimum=1, maximum=5), ["rating.value"]),
    (feedback_pb2.Rating(value=0.9, minimum=1, maximum=5), ["rating.value"]),
    (feedback_pb2.Rating(value=1, minimum=1, maximum=1), ["rating.maximum"]),
    (feedback_pb2.Rating(response=9, value=1, minimum=5, maximum=1), ["rating.response", "rating.maximum"]),
    (feedback_pb2.Edit(response=0, edited_text=" "), ["edit.edited_text"]),
    (feedback_pb2.Edit(response=1, edited_text="b"), ["edit.edited_text"]),
    (feedback_pb2.Edit(response=5, edited_text="x" * 101), ["edit.response", "edit.edited_text"]),
    (feedback_pb2.Tie(first=1, second=1), ["tie.second"]),
    (feedback_pb2.Tie(first=1, second=7), ["tie.second"]),
]


@pytest.mark.parametrize(("signal", "fields"), BAD_SIGNALS)
def test_bad_signal_is_named(signal: object, fields: list[str]) -> None:
    kind = type(signal).__name__.lower()
    assert event_fields(**{kind: signal}) == fields


@pytest.mark.parametrize(("signal", "fields"), BAD_SIGNALS)
def test_bad_signal_about_a_generation_is_named_at_the_latest_when_it_is_filled_in(
    signal: object, fields: list[str]
) -> None:
    named = event(generation_id="g1", prompt=None, responses=None, **{type(signal).__name__.lower(): signal})

    def check() -> None:
        validate_event(named, LIMITS)
        named.responses.extend(["a", "b"])
        validate_signal(named, LIMITS)

    assert set(fields_of(check)) <= set(fields)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 129}, "event_id"),
        ({"annotator_id": "x" * 129}, "annotator_id"),
        ({"generation_id": "x" * 129, "prompt": None, "responses": None}, "generation_id"),
        ({"generation_id": "g1", "responses": None}, "prompt"),
        ({"generation_id": "g1", "prompt": None}, "responses"),
        ({"prompt": None}, "prompt"),
        ({"source": 17}, "source"),
        ({"choice": None}, "signal"),
        ({"tags": {str(i): "" for i in range(17)}}, "tags"),
        ({"tags": {"": "v"}}, "tags"),
        ({"tags": {"k" * 65: "v"}}, "tags"),
        ({"tags": {"k": "v" * 65}}, "tags"),
        ({"arrival_time": {"seconds": 0}}, "arrival_time"),
        ({"shown": {"temperature": 1.0}}, "shown"),
        ({"policy_version": common_pb2.ModelVersion(version="1")}, "policy_version"),
        ({"response_versions": ["1", "2"]}, "response_versions"),
        ({"event_time": {"seconds": 10**15}}, "event_time"),
        ({"event_time": {"nanos": -1}}, "event_time"),
        ({"responses": ["a", "b", "c", "d"]}, "responses"),
    ],
)
def test_bad_event_field_is_named(changes: dict[str, object], field: str) -> None:
    assert event_fields(**changes) == [field]
