"""Feedback's constructors refuse fields that they do not have."""

from __future__ import annotations

from typing import Any

import pytest

from rewardloop_client import Feedback, InvalidRequest

KINDS: dict[str, dict[str, Any]] = {
    "choice": {"chosen": 0, "rejected": 1},
    "ranking": {"order": [0, 1]},
    "thumb": {"up": True},
    "rating": {"value": 1, "minimum": 0, "maximum": 5},
    "edit": {"edited_text": "x"},
    "tie": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("annotator", "annotator_id"), ("tag", "tags"), ("generation", "generation_id"), ("responces", "responses")],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(kind: str, wrong: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"{wrong}.*{meant}"):
        getattr(Feedback, kind)(**KINDS[kind], generation_id="g", **{wrong: "x"})


def test_every_wrong_field_is_named() -> None:
    wrong: dict[str, Any] = {"annotator": "user-17", "tag": {"a": "b"}, "zebra": 1}
    with pytest.raises(TypeError) as refused:
        Feedback.thumb(up=True, generation_id="g", **wrong)
    assert "annotator (did you mean annotator_id?), tag (did you mean tags?), zebra" in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "value"), [("event_time", "now"), ("event_time", 0), ("source", []), ("source", {}), ("source", 1)]
)
def test_a_value_of_another_type_is_an_invalid_request_that_names_the_field(kind: str, field: str, value: Any) -> None:
    wrong = {field: value}
    with pytest.raises(InvalidRequest) as refused:
        getattr(Feedback, kind)(**KINDS[kind], generation_id="g", **wrong)
    assert [violation.field for violation in refused.value.violations] == [field]
