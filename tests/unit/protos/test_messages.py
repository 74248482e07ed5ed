"""The content of messages: a text, or parts of text."""

from __future__ import annotations

from typing import Any

import pytest

from rewardloop.formats.messages import Turn, content_text
from rewardloop_client import InvalidRequest
from rewardloop_client._convert import prompt_pb
from rewardloop_data.rows import RowError, turns_of

PARTS = [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here."}]
IMAGE = [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "x"}}]


def test_parts_of_text_are_joined() -> None:
    assert content_text("a") == "a"
    assert content_text(PARTS) == "Look: here."
    assert turns_of("prompt", [{"role": "user", "content": PARTS}]) == (Turn("user", "Look: here."),)
    (message,) = prompt_pb([{"role": "user", "content": PARTS}]).conversation.messages
    assert message.content == "Look: here."


@pytest.mark.parametrize("content", [IMAGE, None, 3, {"type": "text", "text": "a"}, [["a"]], [{"type": "text"}]])
def test_what_is_no_text_is_refused_by_name(content: Any) -> None:
    with pytest.raises(RowError, match=r"prompt\[0\]\.content: "):
        turns_of("prompt", [{"role": "user", "content": content}])
    with pytest.raises(InvalidRequest) as caught:
        prompt_pb([{"role": "user", "content": content}])
    assert [violation.field for violation in caught.value.violations] == ["prompt[0].content"]


@pytest.mark.parametrize("role", ["developer", "tool"])
def test_rows_may_have_turns_of_the_product_and_of_tools(role: str) -> None:
    said = [{"role": role, "content": "4"}, {"role": "user", "content": "?"}]
    assert turns_of("prompt", said) == (Turn(role, "4"), Turn("user", "?"))
