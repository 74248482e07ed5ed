"""The log of generated answers, by which feedback names what it is about."""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.v1 import policy_pb2
from rewardloop_server.redis_link import redis_errors


class GenerationLog:
    """Generations by id, each kept for ``ttl_s`` seconds."""

    def __init__(self, redis: Redis, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    async def put(self, generation: policy_pb2.Generation) -> None:
        """Raises RedisUnavailable or StoreFull."""
        with redis_errors():
            await self._redis.set(
                keys.GENERATION + generation.generation_id, generation.SerializeToString(), ex=self._ttl_s
            )

    async def get(self, generation_ids: Iterable[str]) -> dict[str, policy_pb2.Generation]:
        """Those that are known, in one round trip. Raises RedisUnavailable."""
        wanted = sorted(set(generation_ids))
        if not wanted:
            return {}
        with redis_errors():
            found = await self._redis.mget([keys.GENERATION + each for each in wanted])
            return {
                each: policy_pb2.Generation.FromString(data)
                for each, data in zip(wanted, found, strict=True)
                if isinstance(data, bytes)
            }
