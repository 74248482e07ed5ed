"""One request of 200 on which the model fails, on a real serving process: it gets an error, the others their scores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from support.processes import ServeProcess, serving
from support.reward_graphs import WORDS, expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc

FATAL, NO_NUMBER, *SOUND = reversed(WORDS[:-1])  # at load the version is tried on the last word
GROUPS, BAD = 200, 83
CODES = {FATAL: grpc.StatusCode.FAILED_PRECONDITION, NO_NUMBER: grpc.StatusCode.INTERNAL}
LANES = (common_pb2.LANE_PRODUCTION, common_pb2.LANE_TRAINER)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("isolation")
    publish_sum_version(ModelStore(directory / "models"), cost=100, fails_on=FATAL, nan_on=NO_NUMBER)
    # On busy cores 200 requests are more than the seconds of work that may wait.
    with serving(
        directory / "models", redis_url, directory / "serve.log", "--queue-ms-production", "600000"
    ) as process:
        yield process


def requests(bad: str, lane: common_pb2.Lane) -> list[reward_pb2.ScoreRequest]:
    """Groups of two responses, one of which has the bad word in one response."""
    groups = []
    for i in range(GROUPS):
        words = [SOUND[(i + k) % len(SOUND)] for k in range(i % 4 + 1)]
        responses = [" ".join(words), " ".join([*words, bad if i == BAD else "alpha"])]
        groups.append(reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="beta"), responses=responses, lane=lane))
    return groups


def assert_right(sent: reward_pb2.ScoreRequest, reply: reward_pb2.ScoreResponse) -> None:
    expected = [expected_logit("beta", response) for response in sent.responses]
    assert [score.logit for score in reply.scores] == pytest.approx(expected)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("bad", CODES)
async def test_one_of_200_concurrent_requests_fails_alone(server: ServeProcess, bad: str, lane) -> None:
    sent = requests(bad, lane)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        replies = await asyncio.gather(*(stub.Score(each, timeout=60) for each in sent), return_exceptions=True)
    errors = {i: reply for i, reply in enumerate(replies) if isinstance(reply, Exception)}
    assert {i: error.code() for i, error in errors.items()} == {BAD: CODES[bad]}
    assert "ONNX" not in errors[BAD].details()
    for i, (request, reply) in enumerate(zip(sent, replies, strict=True)):
        if i != BAD:
            assert_right(request, reply)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("bad", CODES)
async def test_one_of_200_groups_of_a_batch_fails_alone(server: ServeProcess, bad: str, lane) -> None:
    sent = requests(bad, lane)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        batch = await stub.ScoreBatch(reward_pb2.ScoreBatchRequest(groups=sent), timeout=60)
    errors = {i: item.error.code for i, item in enumerate(batch.items) if item.HasField("error")}
    assert errors == {BAD: CODES[bad].value[0]}
    for i, (request, item) in enumerate(zip(sent, batch.items, strict=True)):
        if i != BAD:
            assert_right(request, item.result)
