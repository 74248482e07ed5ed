"""Lists dead letters, puts one back into the stream of signals, or removes it."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.json_format import MessageToJson
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.operating.letters import REQUEUE, REQUEUE_KEYS, Letter, letter_of
from rewardloop.v1 import operations_pb2
from rewardloop_server.calls.errors import InvalidRequest, NoEvent, UnknownItem, Violation
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.calls.replication import Replication

_ID = re.compile(r"\d{1,15}-\d{1,15}")
_MOST_CHARACTERS = 20_000
_MOST_HEX_BYTES = 1_000


class DeadLetters:
    """The stream of dead letters. Every method raises RedisUnavailable, and those that write StoreFull too."""

    def __init__(self, redis: Redis, replication: Replication) -> None:
        self._redis: Any = redis  # its types are unions over every protocol version and decoding
        self._replication = replication

    async def page(self, after: str, count: int) -> operations_pb2.ListDeadLettersResponse:
        """Return ``count`` letters after one, or the oldest ones, and how many there are. Raises InvalidRequest."""
        if after:
            _check(after, "after_letter_id")
        with redis_errors():
            found = await self._redis.xrange(keys.DEAD_LETTERS, f"({after}" if after else "-", "+", count=count)
            total = int(await self._redis.xlen(keys.DEAD_LETTERS))
        letters = [_message(letter_of(letter_id, fields)) for letter_id, fields in found]
        return operations_pb2.ListDeadLettersResponse(letters=letters, total=total)

    async def newest_time_s(self) -> float:
        """Return when the newest letter was put there, in Unix seconds; 0 if there is none."""
        with redis_errors():
            found = await self._redis.xrevrange(keys.DEAD_LETTERS, count=1)
        return letter_of(*found[0]).time_ms / 1000 if found else 0.0

    async def requeue(self, letter_id: str) -> str:
        """Append the letter's event to the stream and remove the letter, as one step. Returns the entry's place.

        Raises:
            InvalidRequest, UnknownItem: There is no such letter.
            NoEvent: It has no bytes.
        """
        _check(letter_id, "letter_id")
        with redis_errors():
            found = await self._redis.xrange(keys.DEAD_LETTERS, letter_id, letter_id)
        if not found:
            raise UnknownItem("there is no such dead letter")
        letter = letter_of(*found[0])
        script = ("EVAL", REQUEUE, len(REQUEUE_KEYS), *REQUEUE_KEYS, *letter.requeue_arguments)
        with redis_errors():
            place = await self._replication.run("operations", keys.FEEDBACK_BARRIER, *script)
        if place is None:
            if not letter.data:
                raise NoEvent("the letter has no event that could be put back")
            raise UnknownItem("somebody has taken the letter meanwhile")
        return str(place.decode())

    async def drop(self, letter_id: str) -> None:
        """Remove a letter for good. Raises InvalidRequest and UnknownItem."""
        _check(letter_id, "letter_id")
        with redis_errors():
            dropped = await self._replication.run(
                "operations", keys.FEEDBACK_BARRIER, "XDEL", keys.DEAD_LETTERS, letter_id
            )
        if not dropped:
            raise UnknownItem("there is no such dead letter")


def _check(letter_id: str, field: str) -> None:
    if not _ID.fullmatch(letter_id):
        raise InvalidRequest([Violation(field, "is no id of a dead letter")])


def _message(letter: Letter) -> operations_pb2.DeadLetter:
    event = letter.event
    content = letter.data[:_MOST_HEX_BYTES].hex() if event is None else MessageToJson(event)
    message = operations_pb2.DeadLetter(
        letter_id=letter.letter_id,
        reason=letter.reason,
        source_id=letter.source_id,
        size_bytes=len(letter.data),
        caller="" if event is None else event.caller,
        event_id="" if event is None else event.event_id,
        content=content[:_MOST_CHARACTERS],
        readable=event is not None,
    )
    message.time.FromMilliseconds(letter.time_ms)
    return message
