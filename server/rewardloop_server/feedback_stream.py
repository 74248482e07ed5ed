"""dedupe + append: the durable stream of signals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_server.redis_link import redis_errors

# KEYS[1]  rewardloop:{feedback}:events            stream that the signal is appended to
# KEYS[2]  rewardloop:{feedback}:seen:<event_id>   string: the stream id of that event_id's first append
# ARGV     serialized FeedbackEvent, event_id, seconds that the event_id is remembered
# Returns  stream id of the first append, and 1 when that was an earlier call's
_APPEND = f"""
local first = redis.call('GET', KEYS[2])
if first then return {{first, 1}} end
local id = redis.call('XADD', KEYS[1], '*', '{keys.EVENT_FIELD}', ARGV[1], '{keys.ID_FIELD}', ARGV[2])
redis.call('SET', KEYS[2], id, 'EX', ARGV[3])
return {{id, 0}}
"""
_APPEND_SHA = hashlib.sha1(_APPEND.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event is in the stream. ``is_duplicate``: an earlier call had appended it."""

    stream_id: str
    is_duplicate: bool


class FeedbackStream:
    """Appends each event_id once within ``ttl_s`` seconds."""

    def __init__(self, redis: Redis, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    async def append(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[Appended]:
        """Append in order, in one round trip; a result for each event.

        Raises RedisUnavailable or StoreFull: then some events may have been appended, and sending all of them again
        appends the rest.
        """
        with redis_errors():
            results = await self._try_append(events)
            if any(isinstance(result, NoScriptError) for result in results):
                # Redis was restarted or its scripts flushed; the events that got through are duplicates by now.
                await self._redis.script_load(_APPEND)
                missing = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
                for i, result in zip(missing, await self._try_append([events[i] for i in missing]), strict=True):
                    results[i] = result
            return [_appended(result) for result in results]

    async def length(self) -> int:
        """Entries in the stream. Raises RedisUnavailable."""
        with redis_errors():
            return int(await self._redis.xlen(keys.FEEDBACK_STREAM))

    async def is_reachable(self) -> bool:
        """Whether Redis answers right now; takes at most the operation timeout."""
        try:
            return bool(await self._redis.ping())
        except RedisError:
            return False

    async def _try_append(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[tuple[bytes, int] | RedisError]:
        pipeline = self._redis.pipeline(transaction=False)
        for event in events:
            pipeline.evalsha(
                _APPEND_SHA,
                2,
                keys.FEEDBACK_STREAM,
                keys.FEEDBACK_SEEN + event.event_id,
                event.SerializeToString(),
                event.event_id,
                self._ttl_s,
            )
        return list(await pipeline.execute(raise_on_error=False))


def _appended(result: tuple[bytes, int] | RedisError) -> Appended:
    if isinstance(result, RedisError):
        raise result
    stream_id, is_duplicate = result
    return Appended(stream_id.decode(), bool(is_duplicate))
