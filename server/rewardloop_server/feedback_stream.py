"""dedupe + append: the durable stream of signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_server.errors import RewardloopError
from rewardloop_server.redis_link import REDIS_FAILURES, redis_errors

# Events in one script call. Redis runs a script without interruption, and syncs its file once for it.
_EVENTS_A_CALL = 100

# KEYS[1]     rewardloop:{feedback}:events            stream that the signals are appended to
# KEYS[1 + i] rewardloop:{feedback}:seen:<event_id>   string: the stream id of that event_id's first append
# ARGV        seconds that an event_id is remembered, then for each event: serialized FeedbackEvent, event_id, and
#             the traceparent that it was sent in, '' for none
# Returns     for each event: stream id of its first append, and 1 when that was an earlier one
_APPEND = f"""
local places = {{}}
for i = 2, #KEYS do
    local event, event_id, trace = ARGV[3 * i - 4], ARGV[3 * i - 3], ARGV[3 * i - 2]
    local first = redis.call('GET', KEYS[i])
    if first then
        places[i - 1] = {{first, 1}}
    else
        local fields = {{'{keys.EVENT_FIELD}', event, '{keys.ID_FIELD}', event_id}}
        if trace ~= '' then fields[5], fields[6] = '{keys.TRACE_FIELD}', trace end
        local id = redis.call('XADD', KEYS[1], '*', unpack(fields))
        redis.call('SET', KEYS[i], id, 'EX', ARGV[1])
        places[i - 1] = {{id, 0}}
    end
end
return places
"""


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event is in the stream. ``is_duplicate``: an earlier call had appended it."""

    stream_id: str
    is_duplicate: bool


class FeedbackStream:
    """Appends each event_id once within ``ttl_s`` seconds. ``carried``: the traceparent that a caller is in, or ""."""

    def __init__(self, redis: Redis, ttl_s: int, carried: Callable[[], str] = lambda: "") -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._carried = carried
        self._append = redis.register_script(_APPEND)

    async def append(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[Appended]:
        """Append in order; a result for each event.

        Raises RedisUnavailable or StoreFull: then some events may have been appended, and sending all of them again
        appends the rest.
        """
        places: list[Appended] = []
        trace = self._carried()
        for start in range(0, len(events), _EVENTS_A_CALL):
            places += await self._append_some(events[start : start + _EVENTS_A_CALL], trace)
        return places

    async def length(self) -> int:
        """Entries in the stream. Raises RedisUnavailable."""
        with redis_errors():
            return int(await self._redis.xlen(keys.FEEDBACK_STREAM))

    async def is_reachable(self) -> bool:
        """Whether Redis answers right now; takes at most the operation timeout."""
        try:
            with redis_errors():
                return bool(await self._redis.ping())
        except (RewardloopError, *REDIS_FAILURES):
            return False

    async def bury(self, event: feedback_pb2.FeedbackEvent, reason: str) -> None:
        """Put into the dead-letter stream what cannot be appended. Raises RedisUnavailable or StoreFull."""
        letter = {
            keys.DEAD_EVENT_FIELD: event.SerializeToString(),
            keys.DEAD_REASON_FIELD: reason,
            keys.DEAD_SOURCE_FIELD: "",
        }
        with redis_errors():
            await self._redis.xadd(keys.DEAD_LETTERS, letter)  # type: ignore[arg-type]  # its dict is invariant

    async def _append_some(self, events: Sequence[feedback_pb2.FeedbackEvent], trace: str) -> list[Appended]:
        args: list[bytes | str | int] = [self._ttl_s]
        for event in events:
            args += (event.SerializeToString(), event.event_id, trace)
        with redis_errors():
            replies = await self._append(
                keys=[keys.FEEDBACK_STREAM, *(keys.FEEDBACK_SEEN + event.event_id for event in events)], args=args
            )
            places = [Appended(stream_id.decode(), bool(is_duplicate)) for stream_id, is_duplicate in replies]
            if len(places) != len(events):
                raise ValueError(f"{len(places)} places for {len(events)} events")
        return places
