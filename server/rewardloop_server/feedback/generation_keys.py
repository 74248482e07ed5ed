"""Signed generation ids. An id that no process of this deployment made is refused without a look at the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from pathlib import Path

from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.process.secret_files import secret_text
from rewardloop_server.calls.errors import RedisUnavailable
from rewardloop_server.calls.redis_link import redis_errors, script_text

# The key in use and the one before it, so that ids which were signed before a change of the key stay good.
_KEPT = 2
_KEY_BYTES = 32
_TAG_BYTES = 16
_FRESH_S = 10.0
_RETRY_S = 1.0  # an unknown signature makes a process look for a new key, but no more often than this

_KEYS = script_text(__package__, "generation_keys.lua")


class GenerationKeys:
    """HMAC keys that every server and policy worker of a deployment shares. The first key signs; two are accepted.

    Args:
        redis: Where the keys are if there is no file. The first process that asks puts a random key there.
        path: A file with a key in hex on each line, the newest first. Empty for the keys in Redis.
    """

    def __init__(self, redis: Redis, path: str = "") -> None:
        self._redis = redis
        self._path = Path(path) if path else None
        self._script = redis.register_script(_KEYS)
        self._keys: tuple[bytes, ...] = ()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def new_id(self) -> str:
        """Return a signed id. Raises RedisUnavailable while the key is unknown, and ValueError for a bad key file."""
        await self._refresh(_FRESH_S)
        number = secrets.token_hex(16)
        return f"{number}.{_tag(self._keys[0], number)}"

    async def is_ours(self, generation_id: str) -> bool:
        """Return whether a process with one of the keys made the id. Raises as `new_id` does."""
        await self._refresh(_FRESH_S)
        if self._is_signed(generation_id):
            return True
        # Another process may sign with a newer key by now.
        await self._refresh(_RETRY_S)
        return self._is_signed(generation_id)

    def _is_signed(self, generation_id: str) -> bool:
        number, _, tag = generation_id.partition(".")
        return any(hmac.compare_digest(_tag(key, number).encode(), tag.encode()) for key in self._keys)

    async def _refresh(self, fresh_s: float) -> None:
        async with self._reading:
            if self._keys and time.monotonic() - self._read_at < fresh_s:
                return
            try:
                lines = await asyncio.to_thread(secret_text, self._path) if self._path else await self._from_redis()
            except RedisUnavailable:
                if not self._keys:
                    raise
                # The known keys stay good. The log is asked next, which raises if Redis is still away.
            else:
                self._keys = parse_keys(lines)
            self._read_at = time.monotonic()

    async def _from_redis(self) -> str:
        with redis_errors():
            found: list[bytes] = await self._script(
                keys=[keys.GENERATION_KEYS], args=[secrets.token_hex(_KEY_BYTES), _KEPT]
            )
        return "\n".join(key.decode() for key in found)


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the newest keys of a text with one key a line.

    Raises ValueError if there is no key, or one is not hex or has fewer than 16 bytes.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()][:_KEPT]
    if not lines:
        raise ValueError("no key for generation ids")
    found = tuple(bytes.fromhex(line) for line in lines)
    if any(len(key) < 16 for key in found):
        raise ValueError("a key for generation ids has fewer than 16 bytes")
    return found


def _tag(key: bytes, number: str) -> str:
    digest = hmac.new(key, number.encode(), hashlib.sha256).digest()[:_TAG_BYTES]
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
