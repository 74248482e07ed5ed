"""A task that asks Redis ends when it is cancelled, at whatever moment that comes."""

from __future__ import annotations

import asyncio
import random

from rewardloop_server.calls.redis_link import connect_redis, redis_errors


async def test_cancellation_ends_a_task_that_asks_redis(redis_url: str) -> None:
    chance = random.Random(0)

    async def ask() -> None:
        while True:
            with redis_errors():
                await redis.get("x")

    for _ in range(200):
        redis = connect_redis(redis_url)
        task = asyncio.create_task(ask())
        await asyncio.sleep(0.006 * chance.random())
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=30)
        assert done
        assert task.cancelled()
        await redis.aclose()
