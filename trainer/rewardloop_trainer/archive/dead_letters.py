"""The dead-letter stream: its bounds, and what a person may do with its letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.operating.letters import REQUEUE, REQUEUE_KEYS, Letter, letter_of

log = structlog.get_logger()

# A trim goes a little below the bound in bytes, which is estimated from some letters.
_BELOW = 0.9
_PAGE = 16


@dataclass(frozen=True, slots=True)
class LetterBounds:
    """What the dead-letter stream holds: ``most`` letters, and about ``max_bytes`` of Redis's memory."""

    most: int = 10_000
    max_bytes: int = 256 * 2**20


def letters(client: redis.Redis, letter_id: str = "") -> Iterator[Letter]:
    """Yield the letter with this id, or without an id every letter, oldest first. Raises redis.RedisError."""
    connection: Any = client  # its types are unions over every protocol version and decoding
    first, last = (letter_id, letter_id) if letter_id else ("-", "+")
    while page := connection.xrange(keys.DEAD_LETTERS, first, last, count=_PAGE):
        for raw_id, fields in page:
            yield letter_of(raw_id, fields)
        if letter_id:
            return
        first = f"({page[-1][0].decode()}"


def newest_id(client: redis.Redis) -> str:
    """Return the id of the newest letter; empty if there is none. Raises redis.RedisError."""
    connection: Any = client
    found = connection.xrevrange(keys.DEAD_LETTERS, count=1)
    return str(found[0][0].decode()) if found else ""


def requeue(client: redis.Redis, letter: Letter) -> str | None:
    """Append a letter's event to the feedback stream again, and delete the letter, as one step.

    Returns the entry's stream id, or None if the letter is gone or has no bytes. Raises redis.RedisError.
    """
    found: Any = client.eval(REQUEUE, len(REQUEUE_KEYS), *REQUEUE_KEYS, *letter.requeue_arguments)
    return None if found is None else str(found.decode())


def drop(client: redis.Redis, letter: Letter) -> bool:
    """Delete a letter for good. Returns whether it was there. Raises redis.RedisError."""
    return bool(client.xdel(keys.DEAD_LETTERS, letter.letter_id))


def drop_oldest_letters(client: redis.Redis, bounds: LetterBounds) -> int:
    """Drop the oldest dead letters beyond the bounds, and return how many. The newest one always stays.

    Raises:
        redis.RedisError: If Redis does not answer.
    """
    connection: Any = client
    length = int(connection.xlen(keys.DEAD_LETTERS))
    if not length:
        return 0
    kept = min(length, bounds.most)
    size = int(connection.memory_usage(keys.DEAD_LETTERS) or 0)
    if size > bounds.max_bytes:
        kept = min(kept, max(1, int(length * _BELOW * bounds.max_bytes / size)))
    if kept == length:
        return 0
    dropped = int(connection.xtrim(keys.DEAD_LETTERS, maxlen=kept, approximate=False))
    log.error("the oldest dead letters were dropped", letters=dropped, kept=kept, bytes=size)
    return dropped
