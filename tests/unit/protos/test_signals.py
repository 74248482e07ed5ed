"""What a signal may be, whoever checks it."""

from __future__ import annotations

from typing import Any

import pytest

from rewardloop.formats.signals import judged_alone, signal_problems
from rewardloop.v1 import feedback_pb2

RESPONSES = ("one", "two", "three")


def event(**signal: Any) -> feedback_pb2.FeedbackEvent:
    return feedback_pb2.FeedbackEvent(**signal)


@pytest.mark.parametrize(
    ("signal", "fields"),
    [
        ({}, ["signal"]),
        ({"choice": {"chosen": 2, "rejected": 0}}, []),
        ({"choice": {"chosen": 1, "rejected": 1}}, ["choice.rejected"]),
        ({"choice": {"chosen": 3, "rejected": -1}}, ["choice.chosen", "choice.rejected"]),
        ({"tie": {"first": 0, "second": 1}}, []),
        ({"tie": {"first": 0, "second": 0}}, ["tie.second"]),
        ({"ranking": {"order": [2, 0, 1]}}, []),
        ({"ranking": {"order": [0]}}, ["ranking.order"]),
        ({"ranking": {"order": [0, 1]}}, ["ranking.order"]),
        ({"thumb": {"response": 2, "up": True}}, []),
        ({"thumb": {"response": 3}}, ["thumb.response"]),
        ({"choice": {"chosen": 0, "rejected": 1, "strength": 0.5}}, []),
        ({"choice": {"chosen": 0, "rejected": 1, "strength": 0.0}}, ["choice.strength"]),
        ({"choice": {"chosen": 0, "rejected": 1, "strength": 1.5}}, ["choice.strength"]),
        ({"choice": {"chosen": 0, "rejected": 1, "strength": float("nan")}}, ["choice.strength"]),
        ({"rating": {"value": 3, "minimum": 1, "maximum": 5}}, []),
        ({"rating": {"value": 6, "minimum": 1, "maximum": 5}}, ["rating.value"]),
        ({"rating": {"value": 1, "minimum": 1, "maximum": 1}}, ["rating.maximum"]),
        ({"rating": {"value": float("nan"), "maximum": float("inf")}}, ["rating.value", "rating.maximum"]),
        ({"edit": {"response": 0, "edited_text": "better"}}, []),
        ({"edit": {"response": 0, "edited_text": " "}}, ["edit.edited_text"]),
        ({"edit": {"response": 1, "edited_text": "two"}}, ["edit.edited_text"]),
        ({"tie": {"first": 0, "second": 1}, "guideline_version": "v" * 64}, []),
        ({"tie": {"first": 0, "second": 1}, "guideline_version": "v" * 65}, ["guideline_version"]),
    ],
)
def test_every_problem_names_its_field(signal: dict[str, Any], fields: list[str]) -> None:
    assert [field for field, _ in signal_problems(event(**signal), RESPONSES)] == fields


@pytest.mark.parametrize(
    ("signal", "is_shown"),
    [
        ({"choice": {"chosen": 2, "rejected": 0}}, True),
        ({"choice": {"chosen": 1, "rejected": 0}}, False),
        ({"tie": {"first": 0, "second": 1}}, False),
        ({"ranking": {"order": [2, 0, 1]}}, False),
        ({"thumb": {"response": 0, "up": True}}, True),
        ({"edit": {"response": 1, "edited_text": "better"}}, False),
    ],
)
def test_a_response_that_was_not_shown_cannot_be_judged(signal: dict[str, Any], is_shown: bool) -> None:
    found = signal_problems(event(display_order=[2, 0], **signal), RESPONSES)
    assert [field for field, _ in found] == ([] if is_shown else ["display_order"])


@pytest.mark.parametrize(
    "signal",
    [
        {"choice": {"chosen": 7, "rejected": 1}},
        {"ranking": {"order": [1, 0]}},
        {"thumb": {"response": 9}},
        {"edit": {"response": 1, "edited_text": "two"}},
    ],
)
def test_what_depends_on_responses_that_are_not_known_is_not_checked(signal: dict[str, Any]) -> None:
    assert not list(signal_problems(event(**signal), None))


def test_a_thumb_is_0_or_1_and_a_rating_its_place_on_its_scale() -> None:
    assert judged_alone(event(thumb={"response": 2, "up": True})) == (2, 1.0)
    assert judged_alone(event(thumb={"response": 0, "up": False})) == (0, 0.0)
    assert judged_alone(event(rating={"response": 1, "value": 4, "minimum": 1, "maximum": 5})) == (1, 0.75)
    assert judged_alone(event(tie={"first": 0, "second": 1})) is None
