"""How far the trainer is behind, read from a real stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from support.intakes import signals
from support.signals import choice

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import RedisUnavailable
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.backlog import Backlog, Remembered, read_backlog, read_remembered
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_stream


async def _add(redis: Redis, seconds_ago: float) -> bytes:
    stream_id = f"{int((time.time() - seconds_ago) * 1000)}-0"
    added: bytes = await redis.xadd(keys.FEEDBACK_STREAM, {"event": b"x"}, id=stream_id)
    return added


async def test_an_empty_stream_is_not_behind(redis: Redis) -> None:
    assert await read_backlog(redis) == Backlog(0, 0, 0.0, 0)


async def test_without_a_reader_the_first_entry_is_the_oldest(redis: Redis) -> None:
    await _add(redis, 100)
    await _add(redis, 10)
    await redis.xadd(keys.DEAD_LETTERS, {"event": b"x"})
    found = await read_backlog(redis)
    assert (found.length, found.pending, found.dead) == (2, 0, 1)
    assert 100 <= found.lag_s < 160


async def test_what_is_read_and_not_acknowledged_waits_still(redis: Redis) -> None:
    for seconds in (100, 50, 10):
        await _add(redis, seconds)
    await redis.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    read = await redis.xreadgroup(keys.FEEDBACK_GROUP, "c", {keys.FEEDBACK_STREAM: ">"}, count=2)
    ids = [stream_id for stream_id, _ in read[0][1]]
    found = await read_backlog(redis)
    assert (found.length, found.pending) == (3, 2)
    assert 100 <= found.lag_s < 160
    await redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, ids[0])
    assert 50 <= (await read_backlog(redis)).lag_s < 100
    await redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, ids[1])
    assert 10 <= (await read_backlog(redis)).lag_s < 50
    read = await redis.xreadgroup(keys.FEEDBACK_GROUP, "c", {keys.FEEDBACK_STREAM: ">"})
    await redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, *[stream_id for stream_id, _ in read[0][1]])
    assert await read_backlog(redis) == Backlog(3, 0, 0.0, 0)  # not trimmed yet


async def test_remembered_ids_are_counted_over_their_windows(redis: Redis) -> None:
    assert await read_remembered(redis) == Remembered(0, 0.0)
    stream = FeedbackStream(redis, ttl_s=100)
    await stream.append(signals(choice(1), choice(2), choice(1)))
    await redis.hset(keys.FEEDBACK_IDS, "began0", int(time.time()) - 60)  # type: ignore[misc]
    await stream.append(signals(choice(3)))
    found = await read_remembered(redis)
    assert found.ids == 3
    assert 60 <= found.reach_s < 100


async def test_a_redis_that_goes_away_and_comes_back_shows(fresh_redis: EmbeddedRedis) -> None:
    metrics, client = ServerMetrics(), connect_redis(fresh_redis.url)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - gauges tell nobody
                await asyncio.sleep(0.02)

    def up() -> float | None:
        return metrics.registry.get_sample_value("rewardloop_redis_up")

    def length() -> float:
        return metrics.registry.get_sample_value("rewardloop_stream_length") or 0.0

    await _add(client, 1)
    measuring = asyncio.create_task(poll_stream(metrics, client, every_s=0.05))
    await until(lambda: up() == 1 and length() == 1)
    fresh_redis.stop()
    with pytest.raises(RedisUnavailable):
        await read_backlog(client)
    await until(lambda: up() == 0 and length() != length())  # NaN
    fresh_redis.start()
    await until(lambda: up() == 1 and length() == 1)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    await client.aclose()
