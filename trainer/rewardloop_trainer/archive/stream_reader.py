"""Reads the feedback stream by bytes, claims what an earlier process left pending, and puts entries aside.

An entry that was read several times and is not archived may be what ends the process each time. Such a suspect is read
alone, under a note in Redis that is deleted only if the process survives. A process that finds the note at its start
makes a dead letter of that entry without reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

import redis
import structlog

from rewardloop.formats import keys

log = structlog.get_logger()

# An entry is also read again after a kill from outside or a full disk, so a few reads are no reason for suspicion.
_READS_OF_A_SUSPECT = 3
# Only one trainer leads, so every consumer has the same name.
_CONSUMER_NAME = "trainer"
_PAGE = 1_000

_JOIN, _READ, _BURY = (
    files(__package__).joinpath("scripts", f"{name}.lua").read_text() for name in ("join", "read", "bury")
)

Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Pending:
    """Ids of entries that were read and not acknowledged.

    Attributes:
        usual: Entries to read together.
        suspects: Entries that were read so often that one of them may end the process.
    """

    usual: list[bytes]
    suspects: list[bytes]


class StreamReader:
    """The only consumer of the stream's group. Every method raises redis.RedisError.

    Args:
        client: Where the stream is.
        max_entry_bytes: A larger entry becomes a dead letter, and its bytes never leave Redis.
        on_buried: Called for each dead letter.
    """

    def __init__(self, client: redis.Redis, max_entry_bytes: int, on_buried: Callable[[], None] = lambda: None) -> None:
        self._redis: Any = client  # redis-py's types are unions over every protocol version and decoding
        self._max_entry_bytes = max_entry_bytes
        self._on_buried = on_buried

    def join(self) -> None:
        """Make the consumer group if there is none. It begins with the first entry of the stream."""
        self._redis.eval(_JOIN, 1, keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP)

    def read(self, most_entries: int, most_bytes: int, block_ms: int) -> list[Entry]:
        """Return the next new entries. If there is none, wait up to ``block_ms`` for one.

        At most one entry goes beyond ``most_bytes``.
        """
        entries, looked_at = self._run(most_entries, most_bytes, ())
        if looked_at:
            return entries
        waited = self._redis.xreadgroup(
            keys.FEEDBACK_GROUP, _CONSUMER_NAME, {keys.FEEDBACK_STREAM: ">"}, count=1, block=block_ms
        )
        found: list[Entry] = list(waited[0][1]) if waited else []
        return [entry for entry in found if not self._is_too_large(entry[0], size_of(entry))]

    def pending(self) -> Iterator[Pending]:
        """Yield the ids of what was read and not acknowledged, some thousand at a time."""
        after = "-"
        while True:
            page = self._redis.xpending_range(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, after, "+", _PAGE)
            if not page:
                return
            suspects = {each["message_id"] for each in page if each["times_delivered"] >= _READS_OF_A_SUSPECT}
            ids = [each["message_id"] for each in page]
            yield Pending([each for each in ids if each not in suspects], [each for each in ids if each in suspects])
            after = f"({ids[-1].decode()}"

    def claim(self, ids: Sequence[bytes], most_bytes: int) -> tuple[list[Entry], int]:
        """Take over pending entries. Returns those that were read, and after how many of the ids it stopped.

        At most one entry goes beyond ``most_bytes``. An id whose entry is no longer in the stream is acknowledged,
        because it would hold up trimming for ever.
        """
        return self._run(len(ids), most_bytes, ids)

    def acknowledge(self, stream_ids: Sequence[str]) -> None:
        self._redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, *stream_ids)

    def delete(self, stream_id: str) -> None:
        """Delete an entry from the stream for good. It is still to be acknowledged."""
        self._redis.xdel(keys.FEEDBACK_STREAM, stream_id)

    def bury(self, stream_id: str, reason: str) -> None:
        """Make a dead letter of a pending entry, and acknowledge it."""
        names = keys.EVENT_FIELD, keys.DEAD_EVENT_FIELD, keys.DEAD_REASON_FIELD, keys.DEAD_SOURCE_FIELD
        self._redis.eval(
            _BURY, 2, keys.FEEDBACK_STREAM, keys.DEAD_LETTERS, keys.FEEDBACK_GROUP, stream_id, reason, *names
        )
        self._on_buried()
        log.warning("dead letter", stream_id=stream_id, reason=reason)

    def is_pending(self, stream_id: str) -> bool:
        """Return whether an entry was read and not acknowledged."""
        return bool(self._redis.xpending_range(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, stream_id, stream_id, 1))

    def is_drained(self) -> bool:
        """Return whether everything in the stream was read and acknowledged."""
        for group in self._redis.xinfo_groups(keys.FEEDBACK_STREAM) if self._redis.exists(keys.FEEDBACK_STREAM) else ():
            if group["name"] == keys.FEEDBACK_GROUP.encode():
                unread = self._redis.xrange(keys.FEEDBACK_STREAM, b"(" + group["last-delivered-id"], "+", count=1)
                return not unread and not group["pending"]
        return False

    def suspect(self) -> str | None:
        """Return the id of the entry that an earlier process read alone before it died."""
        stream_id: bytes | None = self._redis.get(keys.SUSPECT)
        return None if stream_id is None else stream_id.decode()

    def note_suspect(self, stream_id: bytes) -> None:
        """Note which entry this process reads alone."""
        self._redis.set(keys.SUSPECT, stream_id)

    def clear_suspect(self) -> None:
        self._redis.delete(keys.SUSPECT)

    def _run(self, most_entries: int, most_bytes: int, ids: Sequence[bytes]) -> tuple[list[Entry], int]:
        where = keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, _CONSUMER_NAME
        bounds = most_entries, most_bytes, self._max_entry_bytes
        raw, looked_at, large, gone = self._redis.eval(_READ, 1, *where, *bounds, *ids)
        for stream_id, size in zip(large[::2], large[1::2], strict=True):
            self._is_too_large(stream_id, size)
        for stream_id in gone:
            log.error("a pending entry was deleted from the stream", stream_id=stream_id.decode())
        return [(entry[0], dict(zip(entry[1][::2], entry[1][1::2], strict=True))) for entry in raw], int(looked_at)

    def _is_too_large(self, stream_id: bytes, size: int) -> bool:
        """Bury the entry if it is too large. Returns whether it was."""
        if size <= self._max_entry_bytes:
            return False
        self.bury(stream_id.decode(), f"{size} bytes, more than {self._max_entry_bytes}")
        return True


def size_of(entry: Entry) -> int:
    """Return the bytes of an entry's fields."""
    return sum(len(name) + len(value) for name, value in entry[1].items())
