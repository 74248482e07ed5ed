"""How far the reader of the feedback stream is behind, seen by its writer: known also while no trainer runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop_server.calls.redis_link import redis_errors


@dataclass(frozen=True, slots=True)
class Backlog:
    """``length``: entries in the stream. ``pending``: read and not acknowledged. ``lag_s``: age of the oldest entry
    that is not archived, 0 for none. ``dead``: entries in the dead-letter stream."""

    length: int
    pending: int
    lag_s: float
    dead: int


async def read_backlog(redis: Redis) -> Backlog:
    """Raises RedisUnavailable."""
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
