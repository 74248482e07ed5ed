"""dedupe + append against a real redis-server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from redis.asyncio import Redis
from support.intakes import signals
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import EventIdConflict, RedisUnavailable, StoreFull
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.feedback.stream import FeedbackStream


@pytest.fixture
def stream(redis: Redis) -> FeedbackStream:
    return FeedbackStream(redis, ttl_s=60)


async def entries(redis: Redis) -> list[tuple[str, str]]:
    """Stream id and event_id of every entry, in order."""
    raw: Any = await redis.xrange(keys.FEEDBACK_STREAM)
    return [(stream_id.decode(), fields[keys.ID_FIELD.encode()].decode()) for stream_id, fields in raw]


async def test_event_is_in_the_stream_as_it_was_given(redis: Redis, stream: FeedbackStream) -> None:
    (place,) = await stream.append(signals(choice(1)))
    assert not place.is_duplicate
    ((stream_id, fields),) = await redis.xrange(keys.FEEDBACK_STREAM)
    assert stream_id.decode() == place.stream_id
    assert feedback_pb2.FeedbackEvent.FromString(fields[keys.EVENT_FIELD.encode()]) == choice(1)
    assert await stream.length() == 1


async def test_same_signal_is_a_duplicate_and_another_one_under_its_id_a_conflict(
    redis: Redis, stream: FeedbackStream
) -> None:
    (first,) = await stream.append(signals(choice(1)))
    later, changed = choice(1), choice(1)
    later.arrival_time.FromMilliseconds(1_800_000_000_000)
    changed.annotator_id = "someone else"
    again, new, twice, conflict = await stream.append(signals(later, choice(2), choice(2), changed))
    assert (again.stream_id, again.is_duplicate) == ("", True)
    assert (twice.stream_id, twice.is_duplicate) == ("", True)
    assert isinstance(conflict, EventIdConflict)
    assert await entries(redis) == [(first.stream_id, "e1"), (new.stream_id, "e2")]


async def test_event_id_is_forgotten_after_its_time(redis: Redis) -> None:
    stream = FeedbackStream(redis, ttl_s=1)
    await stream.append(signals(choice(1)))
    (bucket,) = await redis.keys(f"{keys.FEEDBACK_IDS}:*")
    assert 1000 < await redis.pttl(bucket) <= 1500


async def test_hundred_appends_of_one_event_at_once_append_it_once(redis: Redis, stream: FeedbackStream) -> None:
    places = await asyncio.gather(*(stream.append(signals(choice(7))) for _ in range(100)))
    assert len(await entries(redis)) == 1
    assert sum(not place.is_duplicate for (place,) in places) == 1


async def test_batch_is_appended_in_order(redis: Redis, stream: FeedbackStream) -> None:
    await stream.append(signals(*(choice(i) for i in range(300))))
    assert [event_id for _, event_id in await entries(redis)] == [f"e{i}" for i in range(300)]


async def test_lost_script_is_loaded_again(redis: Redis, stream: FeedbackStream) -> None:
    await stream.append(signals(choice(1)))
    await redis.script_flush()
    places = await stream.append(signals(choice(1), choice(2)))
    assert [place.is_duplicate for place in places] == [True, False]


async def test_full_redis_refuses_and_keeps_what_it_has(fresh_redis: EmbeddedRedis) -> None:
    redis = connect_redis(fresh_redis.url)
    stream = FeedbackStream(redis, ttl_s=60)
    await stream.append(signals(choice(1)))
    await redis.config_set("maxmemory", "100kb")
    with pytest.raises(StoreFull) as caught:
        await stream.append(signals(choice(2)))
    assert caught.value.retry_after_ms
    await redis.config_set("maxmemory", "0")
    assert [place.is_duplicate for place in await stream.append(signals(choice(1), choice(2)))] == [True, False]
    await redis.aclose()


async def test_killed_redis_loses_nothing_that_was_acknowledged(fresh_redis: EmbeddedRedis) -> None:
    redis = connect_redis(fresh_redis.url)
    stream = FeedbackStream(redis, ttl_s=60)
    acknowledged: dict[str, str] = {}

    async def record(first: int) -> None:
        for number in range(first, first + 250):
            try:
                (place,) = await stream.append(signals(choice(number)))
            except RedisUnavailable:
                return
            acknowledged[f"e{number}"] = place.stream_id

    writers = [asyncio.create_task(record(10_000 * i)) for i in range(8)]
    await asyncio.sleep(0.3)
    fresh_redis.kill()
    await asyncio.gather(*writers)
    assert acknowledged
    with pytest.raises(RedisUnavailable):
        await stream.append(signals(choice(1)))
    assert not await stream.is_reachable()

    fresh_redis.start()
    assert await stream.is_reachable()
    reader = Redis.from_url(fresh_redis.url)  # without the service's tight timeouts: it reads everything at once
    present = await entries(reader)
    assert acknowledged.items() <= {event_id: stream_id for stream_id, event_id in present}.items()
    assert len({event_id for _, event_id in present}) == len(present)
    # What was sent but not acknowledged is sent again, and is there once.
    sent = [choice(10_000 * i + k) for i in range(8) for k in range(250)]
    await stream.append(signals(*sent))
    assert sorted(event_id for _, event_id in await entries(reader)) == sorted(event.event_id for event in sent)
    await reader.aclose()
    await redis.aclose()


async def test_redis_that_hangs_is_unavailable_within_seconds(fresh_redis: EmbeddedRedis) -> None:
    redis = connect_redis(fresh_redis.url)
    stream = FeedbackStream(redis, ttl_s=60)
    await stream.append(signals(choice(1)))
    assert fresh_redis.pid is not None
    os.kill(fresh_redis.pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        outcomes = await asyncio.gather(
            *(stream.append(signals(choice(i))) for i in range(100)), return_exceptions=True
        )
    finally:
        os.kill(fresh_redis.pid, signal.SIGCONT)
    assert {type(outcome) for outcome in outcomes} == {RedisUnavailable}
    assert time.monotonic() - started < 6
    (place,) = await stream.append(signals(choice(200)))
    assert not place.is_duplicate
    await redis.aclose()
