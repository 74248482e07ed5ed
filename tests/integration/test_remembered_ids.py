"""Which event_ids are remembered, for how long, and in how many bytes, in a real redis-server."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from support.intakes import signals
from support.signals import choice

from rewardloop.formats import keys
from rewardloop_server.calls.errors import EventIdConflict
from rewardloop_server.feedback.stream import Appended, Entry, FeedbackStream


async def begin(redis: Redis, seconds_ago: int) -> None:
    """Let the present window have begun so long ago."""
    known: Any = await redis.hgetall(keys.FEEDBACK_IDS)  # type: ignore[misc]
    for field in (b"began0", b"since"):
        await redis.hset(keys.FEEDBACK_IDS, field, int(known[field]) - seconds_ago)  # type: ignore[misc]


async def is_known(stream: FeedbackStream, number: int) -> bool:
    (place,) = await stream.append(signals(choice(number)))
    assert isinstance(place, Appended)
    return place.is_duplicate


async def test_an_id_is_remembered_for_its_time_and_then_forgotten(redis: Redis) -> None:
    stream = FeedbackStream(redis, ttl_s=100)
    assert not await is_known(stream, 1)
    await begin(redis, 49)
    assert not await is_known(stream, 2)  # as late in the window as can be
    for window in (1, 2):
        await begin(redis, 50)
        assert [await is_known(stream, number) for number in (1, 2)] == [True, True]
        assert await redis.hget(keys.FEEDBACK_IDS, "window") == str(window).encode()  # type: ignore[misc]
    await begin(redis, 50)
    assert not await is_known(stream, 1)


async def test_a_full_window_ends_early_and_the_oldest_ids_are_forgotten(redis: Redis) -> None:
    stream = FeedbackStream(redis, ttl_s=100, most_ids=400)
    for number in range(0, 1000, 10):
        await stream.append(signals(*(choice(i) for i in range(number, number + 10))))
    assert [await is_known(stream, number) for number in (999, 800)] == [True, True]
    assert not await is_known(stream, 0)
    assert int(await redis.hget(keys.FEEDBACK_IDS, "window")) == 10  # type: ignore[misc]


async def test_a_bucket_of_a_window_that_is_no_longer_read_is_deleted_with_the_next_one_of_its_name(
    redis: Redis,
) -> None:
    stream = FeedbackStream(redis, ttl_s=100)
    for window in range(5):
        in_one_bucket = b"\xab\xcd" + window.to_bytes(10, "big") + b"8 bytes."
        await stream.append_entries([Entry(f"e{window}", in_one_bucket, choice(window).SerializeToString())])
        await begin(redis, 50)
    assert sorted(await redis.keys(f"{keys.FEEDBACK_IDS}:*")) == [
        f"{keys.FEEDBACK_IDS}:{window}:abcd".encode() for window in (2, 3, 4)
    ]


async def test_a_clock_that_was_set_back_forgets_nothing(redis: Redis) -> None:
    stream = FeedbackStream(redis, ttl_s=100)
    assert not await is_known(stream, 1)
    await begin(redis, -1_000_000)
    assert await is_known(stream, 1)
    assert await redis.hget(keys.FEEDBACK_IDS, "window") == b"0"  # type: ignore[misc]


async def test_ids_that_an_earlier_version_remembered_are_known_until_they_expire(redis: Redis) -> None:
    place = await redis.xadd(
        keys.FEEDBACK_STREAM, {keys.EVENT_FIELD: choice(1).SerializeToString(), keys.ID_FIELD: "e1"}
    )
    await redis.set(keys.FEEDBACK_SEEN + "e1", place, ex=60)
    stream = FeedbackStream(redis, ttl_s=100)
    assert await is_known(stream, 1)
    await begin(redis, 101)  # all of them have expired by then
    assert not await is_known(stream, 1)


async def test_an_id_costs_about_thirty_bytes(redis: Redis) -> None:
    """Buckets as full as with 30 million ids: the script is the real one, and the digests are of a few buckets."""
    stream, of_bucket, buckets = FeedbackStream(redis, ttl_s=10_000), 115, 64
    await stream.append(signals(choice(0)))
    before = int((await redis.info("memory"))["used_memory"])
    (real,) = await redis.keys(f"{keys.FEEDBACK_IDS}:*")
    for bucket in range(buckets):
        for number in range(of_bucket):
            digest = (bucket * of_bucket + number).to_bytes(10, "big")
            await redis.hset(f"{keys.FEEDBACK_IDS}:0:{bucket:04x}", digest, b"\xff" * 8)  # type: ignore[misc]
        await redis.pexpire(f"{keys.FEEDBACK_IDS}:0:{bucket:04x}", 10_000_000)
    used = int((await redis.info("memory"))["used_memory"]) - before
    ((field, value),) = (await redis.hgetall(real)).items()  # type: ignore[misc]
    assert (len(field), len(value)) == (10, 8)
    assert await redis.object("encoding", f"{keys.FEEDBACK_IDS}:0:0001") in (b"ziplist", b"listpack")
    each = used / of_bucket / buckets
    print(f"{each:.1f} bytes an id")
    assert each < 35


@pytest.mark.parametrize("caller", ["", "shop"])
async def test_content_is_compared_without_what_the_server_sets(redis: Redis, caller: str) -> None:
    stream = FeedbackStream(redis, ttl_s=100)
    first, later, other = choice(1), choice(1), choice(1)
    for event in (first, later, other):
        event.caller = caller
    later.arrival_time.FromMilliseconds(1_900_000_000_000)
    other.tags["a"] = "b"
    outcomes = await stream.append(signals(first, later, other))
    assert [getattr(outcome, "is_duplicate", None) for outcome in outcomes] == [False, True, None]
    assert isinstance(outcomes[2], EventIdConflict)
