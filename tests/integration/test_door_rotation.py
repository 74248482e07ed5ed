"""The callers' file changes while the server runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import structlog
from support.doors import CallersFile, call, connected, opened

from rewardloop_client import AsyncRewardloopClient, RewardloopClient, ScoreGroup, WrongCredentials

SCORE = "/rewardloop.v1.RewardService/Score"
STREAM = "/rewardloop.v1.RewardService/ScoreStream"
RELOADS = "rewardloop_door_reloads_total"


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


async def test_token_is_changed_under_load_without_a_failed_request(callers: CallersFile, tmp_path: Path) -> None:
    old = callers.add("shop", "score")
    file = tmp_path / "token"
    file.write_text(old)
    stop = asyncio.Event()
    answered = 0

    async with opened(callers=callers.path) as door:

        async def ask(client: AsyncRewardloopClient) -> None:
            nonlocal answered
            while not stop.is_set():
                await client.score("p", ["a"])
                answered += 1

        async def more() -> None:
            least = answered + 100
            async with asyncio.timeout(60):
                while answered < least:  # noqa: ASYNC110 - a number cannot be awaited
                    await asyncio.sleep(0.01)

        async with (
            AsyncRewardloopClient(door.address, token=file, max_attempts=1, timeout_s=30) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(8):
                group.create_task(ask(client))
            await more()
            new = callers.add("shop", "score")
            await door.reloaded("callers", 1)
            await more()
            file.with_suffix(".new").write_text(new + "\n")
            file.with_suffix(".new").replace(file)
            await more()
            callers.remove(old)
            await door.reloaded("callers", 2)
            await more()
            stop.set()
        with RewardloopClient(door.address, token=old, max_attempts=1) as late, pytest.raises(WrongCredentials):
            await asyncio.to_thread(late.score, "p", ["a"])
        method = {"method": "RewardService/Score"}
        assert door.figure("rewardloop_requests_total", **method, code="OK") == answered
        assert door.figure("rewardloop_requests_total", **method, code="UNAUTHENTICATED") == 1


async def test_bad_file_is_logged_and_the_old_one_stays(callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    async with connected(callers=callers.path) as (door, channel):
        with structlog.testing.capture_logs() as events:
            callers.path.write_text('[[token]]\ncaller = "shop"\nsha256 = "hush"\nroles = ["score"]\n')
            await door.reloaded("callers", outcome="refused")
        assert (await call(channel, SCORE, token)).code == "OK"
        (event,) = [e for e in events if e["log_level"] == "error"]
        assert "token.0.sha256" in event["error"]
        assert "hush" not in str(event)
        callers.path.unlink()
        await door.reloaded("callers", 2, outcome="refused")
        assert (await call(channel, SCORE, token)).code == "OK"
        other = callers.add("other", "score")
        await door.reloaded("callers")
        assert (await call(channel, SCORE, other)).code == "OK"


async def test_stream_of_a_token_that_was_taken_back_ends(callers: CallersFile) -> None:
    token = callers.add("shop", "score")
    async with connected(callers=callers.path) as (door, channel):
        stream = channel.stream_stream(STREAM)(metadata=(("authorization", f"Bearer {token}"),))
        await stream.write(b"")
        assert await stream.read() == b""
        callers.remove(token)
        await door.reloaded("callers")
        await stream.write(b"")
        assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_token_may_come_from_a_function(callers: CallersFile) -> None:
    tokens = [callers.add("shop", "score")]
    async with (
        opened(callers=callers.path) as door,
        AsyncRewardloopClient(door.address, token=lambda: tokens[-1], max_attempts=1) as client,
    ):
        await client.score("p", ["a"])
        tokens.append("wrong")
        with pytest.raises(WrongCredentials):
            await client.score("p", ["a"])
        with pytest.raises(WrongCredentials):
            async for _ in client.score_stream([ScoreGroup("p", ["a"])]):
                pass
