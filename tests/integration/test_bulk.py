"""ScoreBatch and ScoreStream against a real serving process: everything is answered, and a caller that does not read is
not read from."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from support.processes import ServeProcess, serving
from support.reward_graphs import WORDS, expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("bulk")
    publish_sum_version(ModelStore(directory / "models"), max_length=512)
    bounds = ("--queue-tokens-production", "20000", "--bulk-window-tokens", "8000", "--max-in-flight-per-stream", "32")
    with serving(directory / "models", redis_url, directory / "serve.log", *bounds) as process:
        yield process


LANES = (common_pb2.LANE_TRAINER, common_pb2.LANE_PRODUCTION)


def group(number: int, words: int, lane: common_pb2.Lane = common_pb2.LANE_PRODUCTION) -> reward_pb2.ScoreRequest:
    response = " ".join(itertools.islice(itertools.cycle(WORDS[number % len(WORDS) :] + WORDS), words))
    return reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="alpha beta"), responses=[response], lane=lane)


async def test_batch_of_many_times_the_queue_is_scored_whole(server: ServeProcess) -> None:
    groups = [group(n, 300) for n in range(1024)]
    async with grpc.aio.insecure_channel(server.address) as channel:
        reply = await reward_pb2_grpc.RewardServiceStub(channel).ScoreBatch(
            reward_pb2.ScoreBatchRequest(groups=groups), timeout=60
        )
    for sent, item in zip(groups, reply.items, strict=True):
        assert item.WhichOneof("outcome") == "result", item.error
        assert item.result.scores[0].logit == pytest.approx(expected_logit("alpha beta", sent.responses[0]))


async def test_stream_whose_caller_does_not_read_is_not_read_from(server: ServeProcess) -> None:
    taken = 0

    async def requests() -> AsyncIterator[reward_pb2.ScoreStreamRequest]:
        nonlocal taken
        responses = ["beta " * 40] * 200  # 40 KB, and 6 KB of reply: the transport's own windows hold few
        for number in itertools.count():
            request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="alpha"), responses=responses)
            yield reward_pb2.ScoreStreamRequest(request_id=str(number), request=request)
            taken += 1

    async with grpc.aio.insecure_channel(server.address, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(requests())
        assert (await call.read()).HasField("result")
        stalled_at = -1
        async with asyncio.timeout(40):
            while taken != stalled_at:
                stalled_at = taken
                await asyncio.sleep(2.0)
        for _ in range(20):
            assert (await call.read()).HasField("result")
        call.cancel()


async def test_stream_answers_everything_when_read(server: ServeProcess) -> None:
    async def requests() -> AsyncIterator[reward_pb2.ScoreStreamRequest]:
        for number in range(600):
            yield reward_pb2.ScoreStreamRequest(request_id=str(number), request=group(number, 100))

    async with grpc.aio.insecure_channel(server.address) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(requests())
        replies = {reply.request_id: reply async for reply in call}
    assert sorted(map(int, replies)) == list(range(600))
    assert all(reply.HasField("result") for reply in replies.values())


async def test_trainer_is_answered_from_the_cache_and_production_is_not(server: ServeProcess) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        both = [[await stub.Score(group(5, 50, lane)) for _ in range(2)] for lane in LANES]
    (first, again), production = both
    assert (first.timings.run_rows, again.timings.run_rows) == (1, 0)
    assert first.timings.run_tokens == first.scores[0].token_count
    assert again.scores == first.scores
    assert [reply.timings.run_rows for reply in production] == [1, 1]
