"""The log of generated answers. Feedback names the answers that it is about by their generation's id."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.v1 import policy_pb2
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.feedback.generation_keys import GenerationKeys


class GenerationLog:
    """Generations by id, in Redis.

    Args:
        redis: Where they are.
        ttl_s: Seconds for which each is kept.
        signing: Signs ids, and tells ids that are not signed, which are not looked for. None if ids are only random.
        on_forged: Called for each id that is not signed.
        is_by_caller: Whether a caller knows only the generations that were made for it.
    """

    def __init__(
        self,
        redis: Redis,
        ttl_s: int,
        signing: GenerationKeys | None = None,
        on_forged: Callable[[], None] = lambda: None,
        is_by_caller: bool = False,
    ) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._signing = signing
        self._on_forged = on_forged
        self._is_by_caller = is_by_caller

    async def new_id(self) -> str:
        """Return an id for a generation to `put`. Raises RedisUnavailable."""
        return uuid.uuid4().hex if self._signing is None else await self._signing.new_id()

    async def put(self, generation: policy_pb2.Generation) -> None:
        """Log a generation under its id, without its tokens. Raises RedisUnavailable or StoreFull."""
        for candidate in generation.candidates:
            candidate.ClearField("tokens")
        with redis_errors():
            await self._redis.set(
                keys.GENERATION + generation.generation_id, generation.SerializeToString(), ex=self._ttl_s
            )

    async def note_caller(self, generation_id: str, caller: str) -> None:
        """Note for which caller a generation was made. Raises RedisUnavailable or StoreFull."""
        with redis_errors():
            await self._redis.set(keys.GENERATION_CALLER + generation_id, caller, ex=self._ttl_s)

    async def get(self, generation_ids: Iterable[str], caller: str = "") -> dict[str, policy_pb2.Generation]:
        """Return the generations that ``caller`` knows, by id, in one round trip. Raises RedisUnavailable.

        Without a caller they are all that the log has.
        """
        wanted = [each for each in sorted(set(generation_ids)) if await self._is_ours(each)]
        if not wanted:
            return {}
        is_by_caller = self._is_by_caller and bool(caller)
        asked = [keys.GENERATION + each for each in wanted]
        if is_by_caller:
            asked += [keys.GENERATION_CALLER + each for each in wanted]
        with redis_errors():
            found = await self._redis.mget(asked)
            callers = found[len(wanted) :] if is_by_caller else [caller.encode()] * len(wanted)
            return {
                each: policy_pb2.Generation.FromString(data)
                for each, data, made_for in zip(wanted, found, callers, strict=False)
                if isinstance(data, bytes) and made_for == caller.encode()
            }

    async def _is_ours(self, generation_id: str) -> bool:
        if self._signing is None or await self._signing.is_ours(generation_id):
            return True
        self._on_forged()
        return False
