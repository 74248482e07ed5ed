"""The routes of other projects, field by field as their own documentation has them.

text-embeddings-inference: https://huggingface.github.io/text-embeddings-inference/ (`/rerank`, `/predict`); OpenRLHF:
`openrlhf/cli/serve_rm.py` and `openrlhf/utils/remote_rm_utils.py`; vLLM: Classification API.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from support.http_doors import door, fields

from rewardloop_client.fake import FakeRewardloop

VALUES = {"good": 2.0, "fair": 0.0, "bad": -3.0}


def fake() -> FakeRewardloop:
    return FakeRewardloop(score=lambda prompt, response: VALUES[response.strip()])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


async def asked(path: str, body: dict[str, Any]) -> Any:
    async with door(fake()) as http:
        reply = await http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_rerank_lists_the_texts_best_first() -> None:
    texts = ["fair", "bad", "good"]
    found = await asked("/rerank", {"query": "How?", "texts": texts})
    assert [each["index"] for each in found] == [2, 0, 1]
    assert [each["score"] for each in found] == pytest.approx([sigmoid(2), 0.5, sigmoid(-3)])
    assert {name for each in found for name in each} == {"index", "score"}
    every = {"raw_scores": True, "return_text": True, "truncate": True, "truncation_direction": "Right"}
    found = await asked("/rerank", {"query": "How?", "texts": texts, **every})
    assert found == [
        {"index": 2, "score": 2.0, "text": "good"},
        {"index": 0, "score": 0.0, "text": "fair"},
        {"index": 1, "score": -3.0, "text": "bad"},
    ]


async def test_predict_answers_a_pair_and_a_batch_of_pairs() -> None:
    one = await asked("/predict", {"inputs": ["How?", "good"]})
    assert one == [{"score": pytest.approx(sigmoid(2)), "label": "LABEL_0"}]
    raw = await asked("/predict", {"inputs": ["How?", "bad"], "raw_scores": True, "truncate": False})
    assert raw == [{"score": -3.0, "label": "LABEL_0"}]
    many = await asked("/predict", {"inputs": [["How?", "good"], ["How?", "bad"]], "raw_scores": True})
    assert many == [[{"score": 2.0, "label": "LABEL_0"}], [{"score": -3.0, "label": "LABEL_0"}]]
    assert await asked("/predict", {"inputs": [["How?", "good"]], "raw_scores": True}) == [many[0]]


async def test_openrlhf_gets_rewards_in_the_order_of_its_queries() -> None:
    body = {"query": ["How? good", "Why? bad"], "prompts": ["How?", "Why?"], "labels": [None, None]}
    found = await asked("/get_reward", body)
    assert found["rewards"] == found["scores"] == [2.0, -3.0]
    assert all(isinstance(values, list) for values in found["extra_logs"].values())


async def test_vllm_classifies_a_conversation() -> None:
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "good"}]
    found = await asked("/classify", {"model": "reward", "messages": messages})
    assert re.fullmatch(r"classify-[0-9a-f]{32}", found["id"])
    assert found["object"] == "list"
    assert found["model"] == "reward"
    assert isinstance(found["created"], int)
    assert found["data"] == [{"index": 0, "label": "LABEL_0", "probs": [pytest.approx(sigmoid(2))], "num_classes": 1}]
    assert set(found["usage"]) == {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"}
    raw = await asked("/classify", {"messages": messages, "use_activation": False})
    assert raw["data"][0]["probs"] == [2.0]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"query": "How?", "texts": []}, "texts"),
        ("/rerank", {"query": "", "texts": ["good"]}, "query"),
        ("/rerank", {"query": "How?", "texts": ["good", ""]}, "texts[1]"),
        ("/rerank", {"query": "How?", "texts": ["good"], "truncation_direction": "Left"}, "truncation_direction"),
        ("/rerank", {"query": "How?", "texts": ["good"], "top_n": 3}, "top_n"),
        ("/predict", {"inputs": "a single text"}, "inputs"),
        ("/predict", {"inputs": ["a single text"]}, "inputs"),
        ("/predict", {"inputs": [["How?", "good"], ["a single text"]]}, "inputs[1]"),
        ("/predict", {"inputs": [["How?", "good"], ["", "good"]]}, "inputs[1]"),
        ("/get_reward", {"query": ["How? good"]}, "prompts"),
        ("/get_reward", {"query": ["How? good"], "prompts": ["Why?"]}, "query[0]"),
        ("/get_reward", {"query": ["How? good"], "prompts": ["How?", "Why?"]}, "prompts"),
        ("/get_reward", {"query": ["How? good"], "prompts": ["How?"], "labels": []}, "labels"),
        ("/classify", {"model": "reward", "input": "a text"}, "input"),
        (
            "/classify",
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            "messages[1]",
        ),
    ],
)
async def test_what_cannot_be_answered_is_named(path: str, body: dict[str, Any], field: str) -> None:
    async with door(fake()) as http:
        reply = await http.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert fields(reply) == [field]


async def test_the_page_lists_every_route_and_has_no_script() -> None:
    async with door(fake()) as http:
        page, schema = await http.get("/docs"), (await http.get("/openapi.json")).json()
        start = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "http" not in page.text.replace("http://", "").partition("<body>")[0].replace("over HTTP", "")
    assert all(f"{path}</code></h2>" in page.text for path in schema["paths"])
    assert "href='/docs'" in start.text
    assert "href='/console/'" in start.text
    assert "``" not in page.text
    wanted = {"/v1/chat/completions", "/v1/models", "/v1/feedback", "/v1/feedback/tokens", "/v1/score", "/rerank"}
    assert set(schema["paths"]) == wanted | {"/predict", "/get_reward", "/classify", "/healthz"}
