"""Answers that are sent while they are sampled: by a real worker, alone and behind a serving process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import Worker
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import policy_pb2
from rewardloop_client import (
    CandidateText,
    DeadlineExceeded,
    Feedback,
    Generation,
    InvalidRequest,
    RewardloopClient,
    UnknownGeneration,
    UnknownVersion,
)

ASKED: dict[str, Any] = {"candidates": 3, "seed": 5, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("stream")
    store = ModelStore(directory / "models")
    publish_policy(store, small_llama(1), byte_encoder())
    publish_policy(store, small_llama(2), byte_encoder())
    publish_sum_version(store)
    worker = Worker(directory, redis_url)
    try:
        worker.until_serving()
        args = ["--policy-address", worker.address]
        with serving(directory / "models", redis_url, directory / "serve.log", *args) as serve:
            serve.wait_until_serving("rewardloop.v1.PolicyService")
            with RewardloopClient(serve.address, timeout_s=30) as client:
                client.promote("policy", "1")
            yield serve
    finally:
        worker.stop()


@pytest.fixture
def client(served: ServeProcess) -> Iterator[RewardloopClient]:
    with RewardloopClient(served.address, timeout_s=30, max_attempts=1) as opened:
        yield opened


def heard(client: RewardloopClient, **how: Any) -> tuple[list[CandidateText], Generation]:
    *texts, end = client.generate_stream("Hello", **how)
    assert isinstance(end, Generation)
    return [text for text in texts if isinstance(text, CandidateText)], end


def joined(texts: list[CandidateText], candidates: int) -> list[str]:
    return ["".join(each.text for each in texts if each.candidate == i) for i in range(candidates)]


def test_the_parts_make_the_answer_that_generate_gives(client: RewardloopClient, redis_url: str) -> None:
    texts, end = heard(client, **ASKED)
    alone = client.generate("Hello", **ASKED)
    assert [each.text for each in end.candidates] == [each.text for each in alone.candidates]
    assert joined(texts, 3) == [each.text for each in end.candidates]
    assert {each.generation_id for each in texts} == {end.generation_id}
    assert len(texts) > 30
    assert end.prompt_token_count == alone.prompt_token_count > 5
    stored = redis.Redis.from_url(redis_url).get(keys.GENERATION + end.generation_id)
    assert isinstance(stored, bytes)
    logged = policy_pb2.Generation.FromString(stored)
    assert [each.text for each in logged.candidates] == [each.text for each in end.candidates]


def test_the_first_part_comes_long_before_the_last(client: RewardloopClient) -> None:
    times = []
    for event in client.generate_stream("Hello", max_new_tokens=100, temperature=0.0):
        times.append(time.monotonic())
        if len(times) == 1:
            assert isinstance(event, CandidateText)
            with pytest.raises(UnknownGeneration):  # feedback is taken once the answer is logged
                client.record(Feedback.thumb(up=True, generation_id=event.generation_id))
    assert len(times) > 50
    assert times[-1] - times[0] > 0.02


def test_a_stop_text_ends_a_candidate_before_it(client: RewardloopClient) -> None:
    whole = client.generate("Hello", **ASKED).candidates[0]
    stop = whole.text[8:10]
    place = whole.text.find(stop)
    texts, end = heard(client, **{**ASKED, "candidates": 1}, stop=["never said", stop])
    assert end.candidates[0].text == whole.text[:place]
    assert joined(texts, 1) == [whole.text[:place]]
    assert end.candidates[0].finish_reason == "stop"
    assert end.candidates[0].token_count < whole.token_count


def test_tokens_make_the_text_and_the_log_probability(client: RewardloopClient, redis_url: str) -> None:
    answer = client.generate("Hello", **ASKED, token_log_probabilities=True)
    for candidate in answer.candidates:
        assert "".join(token.text for token in candidate.tokens) == candidate.text
        if candidate.finish_reason == "length":
            total = sum(token.log_probability for token in candidate.tokens)
            assert total == pytest.approx(candidate.log_probability)
    stored = redis.Redis.from_url(redis_url).get(keys.GENERATION + answer.generation_id)
    assert isinstance(stored, bytes)
    assert not policy_pb2.Generation.FromString(stored).candidates[0].tokens


def test_a_pinned_version_answers_if_it_is_warm(client: RewardloopClient) -> None:
    assert client.generate("Hello", pin_version="1").policy_version.version == "1"
    with pytest.raises(UnknownVersion):
        client.generate("Hello", pin_version="2")
    client.set_canary("policy", "2", share=0.001)
    try:
        assert client.generate("Hello", pin_version="2").policy_version.version == "2"
    finally:
        client.set_canary("policy", None)


def test_two_versions_speak_in_the_places_where_they_are_shown(client: RewardloopClient) -> None:
    client.set_canary("policy", "2", share=0.999)
    try:
        texts, end = heard(client, candidates=4, seed=1, max_new_tokens=16)
    finally:
        client.set_canary("policy", None)
    versions = [(each.policy_version or end.policy_version).version for each in end.candidates]
    assert sorted(versions) == ["1", "1", "2", "2"]
    assert joined(texts, 4) == [each.text for each in end.candidates]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"stop": [""]}, "stop[0]"), ({"stop": ["x"] * 17}, "stop"), ({"candidates": 65}, "candidates")],
)
def test_wrong_settings_are_refused_before_anything_is_said(
    client: RewardloopClient, wrong: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        heard(client, **wrong)
    assert [each.field for each in raised.value.violations] == [field]


def test_a_stream_keeps_to_its_deadline(client: RewardloopClient) -> None:
    with pytest.raises(DeadlineExceeded):
        heard(client, candidates=64, max_new_tokens=100, timeout_s=0.05)
