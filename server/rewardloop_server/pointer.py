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
# ARGV     model, version, reason, time of the change, most previous versions kept,
#          and for a rollback the version that must be active, else ''
# Returns  the version that was active before (nil: none), and 1 when the pointer is at `version` now
# A promotion puts the version before it on the list of previous ones; a rollback takes its target off, so that a
# second rollback goes further back and not forward again.
_MOVE = """
local raw = redis.call('HGET', KEYS[1], ARGV[1])
local before, previous = false, {}
if raw then
    local old = cjson.decode(raw)
    before, previous = old.version, old.previous
end
if ARGV[6] ~= '' then
    if before ~= ARGV[6] or previous[1] ~= ARGV[2] then return {before, 0} end
    table.remove(previous, 1)
elseif before == ARGV[2] then
    return {before, 1}
elseif before then
    table.insert(previous, 1, before)
    while #previous > tonumber(ARGV[5]) do table.remove(previous) end
end
local list = #previous > 0 and cjson.encode(previous) or '[]'
redis.call('HSET', KEYS[1], ARGV[1],
    '{"version":' .. cjson.encode(ARGV[2]) .. ',"previous":' .. list ..
    ',"changed_at":' .. cjson.encode(ARGV[4]) .. ',"reason":' .. cjson.encode(ARGV[3]) .. '}')
return {before, 1}
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
        before, _ = await self._run(model, version, reason, must_be_active="")
        return before

    async def move_back(self, model: str, version: str, target: str, reason: str) -> bool:
        """Go from ``version`` back to its rollback target; False when the pointer was moved meanwhile."""
        _, is_moved = await self._run(model, target, reason, must_be_active=version)
        return is_moved

    async def initialise(self, model: str, version: str) -> None:
        """Make ``version`` active unless the model has an active one."""
        value = {"version": version, "previous": [], "changed_at": _now(), "reason": "first version"}
        with redis_errors():
            await self._redis.hsetnx(keys.ACTIVE, model, json.dumps(value))

    async def _run(self, model: str, version: str, reason: str, must_be_active: str) -> tuple[str | None, bool]:
        with redis_errors():
            before, is_moved = await self._move(
                keys=[keys.ACTIVE],
                args=[model, version, reason[:_MAX_REASON_CHARS], _now(), _MAX_PREVIOUS, must_be_active],
            )
        return (None if before is None else before.decode()), bool(is_moved)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
