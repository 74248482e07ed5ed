"""Conversions and event constructors: what is sent, and what is refused before sending."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from rewardloop.v1 import common_pb2, feedback_pb2, reward_pb2
from rewardloop_client import Feedback, InvalidRequest, QueueFull
from rewardloop_client._connection import targets
from rewardloop_client._convert import prompt_pb, score_request
from rewardloop_client._retry import Attempts, RetryPolicy


def _request(**changes):
    fields = {
        "prompt": "p",
        "responses": ["a"],
        "truncation": "allowed",
        "pin_version": None,
        "min_version": None,
        "lane": "production",
    }
    fields.update(changes)
    return score_request(fields.pop("prompt"), fields.pop("responses"), **fields)


def test_a_prompt_may_be_text_messages_or_ready() -> None:
    assert prompt_pb("hi").text == "hi"
    turns = prompt_pb([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]).conversation.messages
    assert [(m.role, m.content) for m in turns] == [("user", "hi"), ("assistant", "ho")]
    ready = common_pb2.Prompt(text="x")
    assert prompt_pb(ready) is ready


def test_a_prompt_may_have_tools_and_calls_as_hugging_face_and_openai_write_them() -> None:
    schema = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "CET"}'}}
    said = [
        {"role": "user", "content": "Time?", "name": "anna"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": [{"type": "text", "text": "noon"}], "tool_call_id": "c1"},
    ]
    prompt = prompt_pb({"messages": said, "tools": [schema]})
    assert [json.loads(text) for text in prompt.tools_json] == [schema]
    asked, called, told = prompt.conversation.messages
    assert (asked.name, told.tool_call_id, told.content) == ("anna", "c1", "noon")
    assert called.tool_calls == [common_pb2.ToolCall(id="c1", name="now", arguments_json='{"zone": "CET"}')]
    assert prompt_pb(said).conversation == prompt.conversation


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({"messages": "hi"}, "prompt.messages"),
        ({"text": "hi"}, "prompt"),
        ([{"role": "tools", "content": "x"}], "prompt[0].role"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [5]}, "prompt.tools[0]"),
        ([{"role": "user", "content": "a", "weight": 1}], "prompt[0]"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "5"}]}], "prompt[0].tool_calls[0].arguments"),
        ([{"role": "assistant", "function_call": {"name": "f"}}], "prompt[0].function_call"),
        (3, "prompt"),
        (None, "prompt"),
        (b"bytes", "prompt[0]"),
        ("\ud800", "prompt"),
        ([{"role": "user"}], "prompt[0]"),
        ([{"role": "user", "content": 4}], "prompt[0].content"),
        ([{"role": "user", "content": "a"}, "b"], "prompt[1]"),
    ],
)
def test_a_prompt_that_no_message_can_hold_is_refused(prompt: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prompt_pb(prompt)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"responses": "one text"}, "responses"),
        ({"responses": 5}, "responses"),
        ({"responses": ["a", None]}, "responses[1]"),
        ({"responses": ["a\udfff"]}, "responses[0]"),
        ({"lane": "fast"}, "lane"),
        ({"truncation": "maybe"}, "truncation"),
        ({"pin_version": 7}, "pin_version"),
        ({"min_version": 2**70}, "min_version"),
    ],
)
def test_a_score_request_that_cannot_be_sent_names_its_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _request(**changes)
    assert caught.value.violations[0].field == field


def test_absent_versions_stay_absent_and_given_ones_are_sent() -> None:
    bare, pinned = _request(), _request(pin_version="7", min_version=0, truncation="refused", lane="trainer")
    assert not bare.HasField("pin_version")
    assert not bare.HasField("min_version")
    assert (pinned.pin_version, pinned.HasField("min_version")) == ("7", True)
    assert (pinned.truncation, pinned.lane) == (reward_pb2.TRUNCATION_REFUSED, common_pb2.LANE_TRAINER)


def test_each_signal_is_built_with_its_context() -> None:
    context = {
        "prompt": "p",
        "responses": ["a", "b", "c"],
        "event_id": "e",
        "annotator_id": "w1",
        "source": "llm_judge",
        "tags": {"lang": "de"},
        "event_time": datetime(2026, 1, 2, tzinfo=UTC),
    }
    made = {
        "choice": Feedback.choice(chosen=2, rejected=0, **context),
        "ranking": Feedback.ranking(order=[2, 0, 1], **context),
        "thumb": Feedback.thumb(up=True, response=1, **context),
        "rating": Feedback.rating(value=4, minimum=1, maximum=5, response=1, **context),
        "edit": Feedback.edit(edited_text="z", response=1, **context),
        "tie": Feedback.tie(first=0, second=2, **context),
    }
    for kind, event in made.items():
        assert event.WhichOneof("signal") == kind
        assert (event.event_id, event.annotator_id, event.source) == ("e", "w1", feedback_pb2.SOURCE_LLM_JUDGE)
        assert dict(event.tags) == {"lang": "de"}
        assert event.event_time.ToJsonString() == "2026-01-02T00:00:00Z"
        assert list(event.responses) == ["a", "b", "c"]
    assert list(made["ranking"].ranking.order) == [2, 0, 1]
    assert (made["choice"].choice.chosen, made["choice"].choice.rejected) == (2, 0)


def test_events_get_distinct_ids_when_none_is_given() -> None:
    ids = {Feedback.thumb(up=True, generation_id="g").event_id for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize(
    "make",
    [
        lambda: Feedback.choice(chosen="0", rejected=1, prompt="p", responses=["a", "b"]),
        lambda: Feedback.ranking(order=[0, 2**40], prompt="p", responses=["a", "b"]),
        lambda: Feedback.edit(edited_text="\ud800", prompt="p", responses=["a"]),
        lambda: Feedback.thumb(up=True, prompt="p", responses=["a"], tags={"k": 3}),
        lambda: Feedback.thumb(up=True, prompt="p", responses=["a"], source="robot"),
    ],
)
def test_signals_that_no_message_can_hold_are_refused(make) -> None:
    with pytest.raises(InvalidRequest):
        make()


def test_a_naive_event_time_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Feedback.thumb(up=True, generation_id="g", event_time=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ("127.0.0.1:1", ("127.0.0.1:1",)),
        ("127.0.0.1:1, 127.0.0.1:2", ("ipv4:127.0.0.1:1,127.0.0.1:2",)),
        (["127.0.0.1:1", "127.0.0.1:1"], ("127.0.0.1:1",)),
        (["[::1]:1", "[::1]:2"], ("ipv6:[::1]:1,[::1]:2",)),
        (["a:1", "b:2"], ("a:1", "b:2")),
        (["127.0.0.1:1", "b:2"], ("127.0.0.1:1", "b:2")),
        ("unix:/tmp/a,b.sock", ("unix:/tmp/a,b.sock",)),
        ("dns:///name:1", ("dns:///name:1",)),
    ],
)
def test_addresses_become_targets(addresses, expected: tuple[str, ...]) -> None:
    assert targets(addresses) == expected


@pytest.mark.parametrize("addresses", ["", [], ",", "host", "host:", ":1", "host:0", "host:70000", "a:1,b"])
def test_an_address_that_is_none_is_refused(addresses) -> None:
    with pytest.raises(ValueError, match=r"address|host:port"):
        targets(addresses)


def test_pauses_grow_up_to_their_bound() -> None:
    policy = RetryPolicy(max_attempts=8, first_pause_s=1, max_pause_s=4)
    longest = [0.0] * 7
    for _ in range(300):
        attempts = Attempts(policy, None)
        longest = [max(seen, attempts.pause_after(QueueFull("full"))) for seen in longest]
    for seen, bound in zip(longest, [1, 2, 4, 4, 4, 4, 4], strict=True):
        assert 0.8 * bound < seen <= bound


def test_nothing_heavy_is_imported() -> None:
    code = """
import asyncio, sys
from rewardloop_client import AsyncRewardloopClient, Feedback, RewardloopClient, RewardloopError
from rewardloop_client.fake import FakeRewardloop
try:
    RewardloopClient("127.0.0.1:1", timeout_s=1, max_attempts=1).score("p", ["a"])
except RewardloopError: pass
async def use():
    try:
        await AsyncRewardloopClient("127.0.0.1:1", timeout_s=1, max_attempts=1).score("p", ["a"])
    except RewardloopError: pass
asyncio.run(use())
FakeRewardloop().record(Feedback.thumb(up=True, prompt="p", responses=["a"]))
heavy = {"torch", "numpy", "onnxruntime", "transformers", "pyarrow", "pydantic", "rich", "typer", "tokenizers"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
