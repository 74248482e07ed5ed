"""Which version of each model is active everywhere: one pointer a model, in Redis, that every replica follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop_server.redis_link import redis_errors

_MAX_PREVIOUS = 20
_MAX_REASON_CHARS = 1000

# KEYS[1]  rewardloop:{models}:active   hash: model name to the JSON that `keys` describes
# ARGV     model, version, reason, time of the change, most previous versions kept
# Returns  the version that was active before, or nil
# An active version that is named again stays as it is. A version that returns leaves the list of previous ones
# together with what came after it, so that a rollback goes on backwards and not to and fro.
_MOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local before, previous = false, {}
if raw then
    local old = cjson.decode(raw)
    before = old.version
    if before == ARGV[2] then return before end
    previous = old.previous
    local again = 0
    for i, version in ipairs(previous) do
        if version == ARGV[2] then again = i break end
    end
    if again > 0 then
        for _ = 1, again do table.remove(previous, 1) end
    else
        table.insert(previous, 1, before)
        while #previous > tonumber(ARGV[5]) do table.remove(previous) end
    end
end
local list = #previous > 0 and cjson.encode(previous) or '[]'
local now = '{"version":' .. cjson.encode(ARGV[2]) .. ',"previous":' .. list ..
    ',"changed_at":' .. cjson.encode(ARGV[4]) .. ',"reason":' .. cjson.encode(ARGV[3]) .. '}'
redis.call('HSET', KEYS[1], ARGV[1], now)
return before
"""


@dataclass(frozen=True, slots=True)
class Active:
    """A model's active version, and those that a rollback goes back to, newest first."""

    version: str
    previous: tuple[str, ...] = ()

    @property
    def rollback_target(self) -> str | None:
        """The version that was active before this one."""
        return self.previous[0] if self.previous else None


class ActivePointer:
    """Reads and moves the pointers. Every method raises RedisUnavailable when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._move = redis.register_script(_MOVE)

    async def read(self, model: str) -> Active | None:
        """None: no version was ever active."""
        with redis_errors():
            raw = await self._redis.hget(keys.ACTIVE, model)
        if raw is None:
            return None
        value = json.loads(raw)
        return Active(value["version"], tuple(value["previous"]))

    async def move(self, model: str, version: str, reason: str) -> str | None:
        """Make ``version`` active; returns the version before. No-op when it is active already."""
        with redis_errors():
            before = await self._move(
                keys=[keys.ACTIVE],
                args=[model, version, reason[:_MAX_REASON_CHARS], _now(), _MAX_PREVIOUS],
            )
        return None if before is None else before.decode()

    async def initialise(self, model: str, version: str) -> None:
        """Make ``version`` active unless the model has an active one."""
        value = {"version": version, "previous": [], "changed_at": _now(), "reason": "first version"}
        with redis_errors():
            await self._redis.hsetnx(keys.ACTIVE, model, json.dumps(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
