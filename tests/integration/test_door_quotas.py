"""What a caller may ask for, over real gRPC."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.doors import METHODS, CallersFile, call, connected, opened

from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_client import AsyncRewardloopClient, QuotaSpent

SCORE = METHODS[0]
STREAM = "/rewardloop.v1.RewardService/ScoreStream"


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


def request(characters: int) -> bytes:
    prompt = common_pb2.Prompt(text="p" * characters)
    return reward_pb2.ScoreRequest(prompt=prompt, responses=["a"]).SerializeToString()


async def test_requests_over_the_rate_are_refused_and_others_served(callers: CallersFile) -> None:
    greedy, other = callers.add("greedy", "score"), callers.add("other", "score")
    callers.bound("greedy", requests_per_s=0.01, burst_s=300)  # three, and none for a long time
    async with connected(callers=callers.path) as (door, channel):
        outcomes = [await call(channel, SCORE, greedy) for _ in range(6)]
        assert [each.code for each in outcomes] == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 3
        refused = outcomes[-1]
        assert refused.reason == "QUOTA_SPENT"
        assert refused.retry_ms is not None
        assert 90_000 < refused.retry_ms <= 100_000
        assert refused.pushback == str(refused.retry_ms)
        assert "greedy" in refused.message
        assert [(await call(channel, SCORE, other)).code for _ in range(6)] == ["OK"] * 6
        assert door.figure("rewardloop_quota_refusals_total", caller="greedy", quota="requests") == 3
        assert len(door.behind.calls) == 9


@pytest.mark.parametrize(("quota", "rate"), [("tokens", 100), ("bytes", 400)])
async def test_large_request_is_served_and_paid_back(quota: str, rate: float, callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    callers.bound("shop", **{f"{quota}_per_s": rate})
    async with connected(callers=callers.path) as (door, channel):
        assert (await call(channel, SCORE, token, request(200_000))).code == "OK"
        refused = await call(channel, SCORE, token, request(1))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_SPENT")
        assert quota in refused.message
        assert refused.retry_ms is not None
        assert refused.retry_ms > 60_000
        assert len(door.behind.calls) == 1


async def test_requests_in_flight_are_bounded_from_their_headers_on(callers: CallersFile) -> None:
    token, other = callers.add("shop", "score"), callers.add("other", "score")
    callers.bound("shop", concurrent=2)
    released = asyncio.Event()
    async with connected(callers=callers.path) as (door, channel):

        async def begin(path: str, message: Any) -> None:
            await released.wait()

        headers: Any = (("authorization", f"Bearer {token}"),)
        door.behind.begin = begin
        waiting = asyncio.create_task(call(channel, SCORE, token))
        unfinished = channel.stream_stream(SCORE)(metadata=headers)  # its message never comes
        await unfinished.wait_for_connection()
        async with asyncio.timeout(60):
            while (refused := await call(channel, SCORE, token, timeout_s=1)).code != "RESOURCE_EXHAUSTED":
                pass
        assert (refused.reason, refused.pushback) == ("QUOTA_SPENT", "100")
        released.set()
        assert (await waiting).code == "OK"
        assert (await call(channel, SCORE, other)).code == "OK"
        unfinished.cancel()
        async with asyncio.timeout(60):
            while (await call(channel, SCORE, token)).code != "OK":
                pass  # the server hears of it a little later


async def test_stream_over_its_rate_is_slowed_and_loses_nothing(callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    callers.bound("shop", requests_per_s=40, burst_s=0.25)
    async with opened(callers=callers.path) as door:
        started = time.monotonic()
        headers: Any = (("authorization", f"Bearer {token}"),)
        async with grpc.aio.insecure_channel(door.address) as channel:
            stream = channel.stream_stream(STREAM)(metadata=headers)
            for _ in range(50):
                await stream.write(b"")
            await stream.done_writing()
            replies = [reply async for reply in stream]
        assert len(replies) == 50
        # 10 at once, then 40 a second: no less than a second whatever this machine does beside.
        assert time.monotonic() - started > 0.9


async def test_client_waits_as_it_is_told(callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    callers.bound("shop", requests_per_s=20, burst_s=0.05)
    async with opened(callers=callers.path) as door:
        async with AsyncRewardloopClient(door.address, token=token, timeout_s=60, max_attempts=40) as client:
            await asyncio.gather(*(client.score("p", ["a"]) for _ in range(10)))
        assert len(door.behind.calls) == 10
        callers.bound("shop", requests_per_s=0.001, burst_s=1000)
        await door.reloaded("callers")
        async with AsyncRewardloopClient(door.address, token=token, max_attempts=2) as client:
            await client.score("p", ["a"])
            with pytest.raises(QuotaSpent) as refused:
                await client.score("p", ["a"])
            assert (refused.value.retry_after_s or 0) > 100


async def test_quota_spent_stays_spent_when_the_file_is_read_again(callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    callers.bound("*", requests_per_s=0.001, burst_s=1000)
    async with connected(callers=callers.path) as (door, channel):
        assert (await call(channel, SCORE, token)).code == "OK"
        second = callers.add("shop", "score")
        await door.reloaded("callers")
        assert (await call(channel, SCORE, second)).reason == "QUOTA_SPENT"
