"""Chat completions over HTTP with the official `openai` client, by the client's fake."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from support.http_doors import URL, door, fields

from rewardloop_client import DeadlinePassed, NotAllowed, PolicyUnavailable, QueueFull, WrongCredentials
from rewardloop_client.fake import FakeRewardloop

HELLO: Any = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def openai_client(fake: FakeRewardloop, **settings: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with door(fake, **settings) as http:
        yield openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="t", http_client=http, max_retries=0)


def talkative(**settings: Any) -> FakeRewardloop:
    return FakeRewardloop(generate=lambda prompt, i: f"answer {i} to {prompt}\nEND more", **settings)


async def test_an_answer_has_the_generation_as_its_id() -> None:
    fake = talkative()
    async with openai_client(fake) as client:
        answer = await client.chat.completions.create(model="policy", messages=HELLO, n=2)
    assert answer.id in fake.generations
    assert [choice.message.content for choice in answer.choices] == [
        "answer 0 to user: Hello\nEND more",
        "answer 1 to user: Hello\nEND more",
    ]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.model == "policy:1"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 3


async def test_settings_reach_the_policy() -> None:
    fake = talkative(versions={"reward": "1", "policy": ["1", "7"]})
    async with openai_client(fake) as client:
        answer = await client.chat.completions.create(
            model="policy:1",
            messages=HELLO,
            temperature=0.5,
            top_p=0.9,
            seed=3,
            max_completion_tokens=9,
            stop=["\nEND"],
            logprobs=True,
        )
    assert answer.choices[0].message.content == "answer 0 to user: Hello"
    assert answer.model == "policy:1"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].token == "answer 0 to user: Hello"


async def test_a_stream_comes_in_parts_and_makes_the_answer() -> None:
    fake = talkative()
    async with openai_client(fake) as client:
        stream = await client.chat.completions.create(
            model="policy", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [f"answer {i} to user: Hello\nEND more" for i in range(2)]
    assert {chunk.id for chunk in chunks} == set(fake.generations)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    assert sum(1 for chunk in chunks for choice in chunk.choices if choice.finish_reason == "stop") == 2
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices


async def test_the_stream_is_written_as_server_sent_events() -> None:
    async with door(talkative()) as http:
        reply = await http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["rewardloop"]["candidates"][0]["policy_version"]["version"] == "1"


async def test_a_stream_whose_call_fails_at_once_has_its_status_and_later_an_error_event() -> None:
    fake = talkative()
    fake.fail("generate_stream", QueueFull("busy", retry_after_s=1.0))
    async with openai_client(fake) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(model="policy", messages=HELLO, stream=True)
    assert raised.value.code == "QUEUE_FULL"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WrongCredentials("no such token"), openai.AuthenticationError),
        (NotAllowed("no role"), openai.PermissionDeniedError),
        (QueueFull("busy"), openai.RateLimitError),
        (PolicyUnavailable("away"), openai.InternalServerError),
        (DeadlinePassed("late"), openai.InternalServerError),
    ],
)
async def test_failures_are_the_clients_own_exceptions(error: Any, kind: type[openai.APIStatusError]) -> None:
    fake = FakeRewardloop(max_attempts=1)
    fake.fail("generate", error)
    async with openai_client(fake) as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(model="policy", messages=HELLO)
    assert raised.value.body["reason"] == error.reason  # type: ignore[index]


async def test_an_unknown_version_is_not_found() -> None:
    async with openai_client(FakeRewardloop()) as client:
        with pytest.raises(openai.NotFoundError) as raised:
            await client.chat.completions.create(model="policy:99", messages=HELLO)
    assert raised.value.code == "UNKNOWN_VERSION"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"model": "gpt-4"}, "model"),
        ({"model": "policy:"}, "model"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"top_logprobs": 2, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"user": "u"}, "user"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "best_of": 4}, "best_of"),
        ({"top_k": 4}, "top_k"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"stop": [3]}, "stop[0]"),
        ({"best_of": 1, "n": 2}, "best_of"),
    ],
)
async def test_what_cannot_be_honoured_is_named(wrong: dict[str, Any], field: str) -> None:
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/chat/completions", json={"messages": HELLO, **wrong})
    assert reply.status_code == 400, reply.text
    assert fields(reply) == [field]


async def test_what_changes_nothing_is_taken() -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "store": False,
        "service_tier": "auto",
        "top_p": 1,
        "stop": None,
    }
    async with door(FakeRewardloop()) as http:
        reply = await http.post("/v1/chat/completions", json={"messages": HELLO, **neutral})
    assert reply.status_code == 200, reply.text


async def test_the_best_of_several_is_chosen() -> None:
    fake = FakeRewardloop(generate=lambda prompt, i: "x" * (i + 1))
    async with openai_client(fake) as client:
        answer = await client.chat.completions.create(
            model="policy", messages=HELLO, n=2, extra_body={"best_of": 4, "selection": "best"}
        )
    assert [choice.message.content for choice in answer.choices] == ["xxxx", "xxx"]
    extras = answer.model_extra["rewardloop"]  # type: ignore[index]
    assert extras["chosen"]["sampled"] == 4
    assert [each["score"] for each in extras["candidates"]] == [4.0, 3.0]


async def test_models_are_the_live_policy_and_its_versions() -> None:
    fake = FakeRewardloop(versions={"reward": "1", "policy": ["1", "2"]})
    async with openai_client(fake) as client:
        found = [model.id async for model in await client.models.list()]
    assert found == ["policy", "policy:2"]
