"""Measures how far the trainer is behind in reading the feedback stream, and how many event_ids are remembered."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop_server.calls.redis_link import redis_errors


@dataclass(frozen=True, slots=True)
class Backlog:
    """The state of the feedback stream.

    Attributes:
        length: Entries in the stream.
        pending: Entries that were read and not acknowledged.
        lag_s: Age of the oldest entry that is not archived, in seconds; 0 if there is none.
        dead: Entries in the dead-letter stream.
    """

    length: int
    pending: int
    lag_s: float
    dead: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """The event_ids by which signals that are sent again are recognised.

    Attributes:
        ids: How many there are.
        reach_s: How long ago the oldest of them may have come, in seconds; 0 if there is none.
    """

    ids: int
    reach_s: float


async def read_remembered(redis: Redis) -> Remembered:
    """Read how many event_ids are remembered. Raises RedisUnavailable."""
    client: Any = redis  # its types are unions over every protocol version and decoding
    windows = [f"{field}{window}" for field in ("began", "count") for window in range(3)]
    with redis_errors():
        found = [None if value is None else int(value) for value in await client.hmget(keys.FEEDBACK_IDS, windows)]
    began = [each for each in found[:3] if each is not None]
    return Remembered(sum(each or 0 for each in found[3:]), max(0.0, time.time() - min(began)) if began else 0.0)


async def read_backlog(redis: Redis) -> Backlog:
    """Read the state of the feedback stream. Raises RedisUnavailable."""
    client: Any = redis  # its types are unions over every protocol version and decoding
    with redis_errors():
        length, dead = int(await client.xlen(keys.FEEDBACK_STREAM)), int(await client.xlen(keys.DEAD_LETTERS))
        if length == 0:
            return Backlog(0, 0, 0.0, dead)
        groups = await client.xinfo_groups(keys.FEEDBACK_STREAM)
        group = next((each for each in groups if each["name"] == keys.FEEDBACK_GROUP.encode()), None)
        unread_from = "-" if group is None else b"(" + group["last-delivered-id"]
        waiting = [entry[0] for entry in await client.xrange(keys.FEEDBACK_STREAM, unread_from, "+", count=1)]
        pending = 0 if group is None else int(group["pending"])
        if pending and (oldest := (await client.xpending(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP))["min"]):
            waiting.append(oldest)
    arrived = [int(stream_id.partition(b"-")[0]) / 1000 for stream_id in waiting]
    return Backlog(length, pending, max(0.0, time.time() - min(arrived)) if arrived else 0.0, dead)
