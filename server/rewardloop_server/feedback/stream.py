"""deduplicate and append: the durable stream of signals."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import math
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from rewardloop.formats import keys
from rewardloop_server.calls.errors import EventIdConflict, RewardloopError
from rewardloop_server.calls.redis_link import REDIS_FAILURES, redis_errors, script_text
from rewardloop_server.calls.replication import Replication
from rewardloop_server.feedback.caps import Caps, Check
from rewardloop_server.feedback.group_commit import GroupCommit
from rewardloop_server.feedback.id_windows import MOST_IDS, MOST_OF_MOST_IDS, WINDOWS
from rewardloop_server.feedback.signal import Signal

# Most events and bytes in one call of the script, during which Redis does nothing else. It syncs its file once for it.
_EVENTS_A_CALL = 128
_BYTES_A_CALL = 4 * 2**20
# After this many entries are made, other requests have their turn on the event loop.
_MADE_AT_ONCE = 100

# Names of what the script reads and stores, which it gets as arguments so that they are defined once.
_STORED_NAMES = (keys.FEEDBACK_SEEN, keys.EVENT_FIELD, keys.ID_FIELD, keys.TRACE_FIELD)

# The bucket and the rest of the key, the number of checks, and the bytes of the event_id; see the script.
_ABOUT = struct.Struct(">4s18sBH")

_APPEND = script_text(__package__, "append.lua")
_APPEND_SHA = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()


class Entry(NamedTuple):
    """An event ready to append.

    Attributes:
        event_id: Its id.
        key: 12 bytes of a digest of its caller and its id, and 8 bytes of a digest of what the caller sent.
        data: The serialized event.
        checks: The bounds of the annotator and the caller that it must keep.
        trace: The traceparent in which it was sent, or "".
    """

    event_id: str
    key: bytes
    data: bytes
    checks: tuple[Check, ...] = ()
    trace: str = ""

    @property
    def size(self) -> int:
        return len(self.data)


def entry_of(signal: Signal, checks: tuple[Check, ...] = (), trace: str = "") -> Entry:
    """Return the entry of a signal."""
    event_id = signal.event.event_id
    key = keys.id_digest(event_id, signal.sender.key) + hashlib.blake2b(signal.said, digest_size=8).digest()
    return Entry(event_id, key, signal.data, checks, trace)


class Appended(NamedTuple):
    """An event's place in the stream; "" if it was not appended.

    Attributes:
        stream_id: The place.
        is_duplicate: Whether an earlier call had appended it.
        is_erased: Whether the signal of its event_id was erased, which counts as a duplicate, too.
    """

    stream_id: str
    is_duplicate: bool
    is_erased: bool = False


_DUPLICATE = Appended("", True)
ERASED = Appended("", True, is_erased=True)


def _about(event_id: str, key: bytes, checks: int, trace: str) -> bytes:
    """Return what the script reads of an entry beside its data."""
    name = event_id.encode()
    return _ABOUT.pack(key[:2].hex().encode(), key[2:], checks, len(name)) + name + trace.encode()


class FeedbackStream:
    """Appends events to the stream in Redis, each event_id of a caller once.

    Args:
        redis: Where the stream is.
        ttl_s: Seconds for which an event_id is remembered, at least.
        caps: Bounds on the signals of one annotator and one caller.
        on_group: Called with the number of events of each write.
        carried: Returns the traceparent of the present call, or "".
        most_ids: Most event_ids that are remembered. When there are more, the oldest are forgotten earlier.
        replication: How many replicas must have an event before it counts as appended; by default none.
    """

    def __init__(
        self,
        redis: Redis,
        ttl_s: int,
        caps: Caps | None = None,
        on_group: Callable[[int], None] = lambda events: None,
        carried: Callable[[], str] = lambda: "",
        most_ids: int = MOST_IDS,
        replication: Replication | None = None,
    ) -> None:
        self.redis = self._redis = redis
        self._replication = replication or Replication(redis)
        self._ttl_s = ttl_s
        self._window_ids = max(1, min(most_ids, MOST_OF_MOST_IDS) // WINDOWS)
        self._caps = caps or Caps()
        self._on_group = on_group
        self._carried = carried
        self._commit: GroupCommit[Entry, Appended | RewardloopError] = GroupCommit(
            self._append_group, most_entries=_EVENTS_A_CALL, most_bytes=_BYTES_A_CALL
        )

    async def append(self, signals: Sequence[Signal]) -> list[Appended | RewardloopError]:
        """Append signals in order. Returns for each its place, or an EventIdConflict, TooManySignals or ReplayedSignal.

        Raises:
            RedisUnavailable, StoreFull: Some events may have been appended. Sending all of them again appends the rest.
        """
        now, trace = time.time(), self._carried()
        entries: list[Entry] = []
        for each in signals:
            entries.append(entry_of(each, self._caps.checks(each.event, now, each.sender.caller), trace))
            if len(entries) % _MADE_AT_ONCE == 0:
                await asyncio.sleep(0)
        return await self.append_entries(entries)

    async def append_entries(self, entries: Sequence[Entry]) -> list[Appended | RewardloopError]:
        """Append serialized events as `append` does. Entries without checks are never refused."""
        return await self._commit.add(entries)

    async def retract(self, import_id: str, caller: str, age_s: float | None = None) -> str:
        """Append that a caller takes an import back, and return its place; see `Intake.retract`.

        Raises RedisUnavailable or StoreFull.
        """
        fields: tuple[str, ...] = (keys.RETRACTION_FIELD, import_id, keys.CALLER_FIELD, caller)
        if age_s is not None:
            fields += (keys.RETRACTION_AGE_FIELD, str(math.ceil(max(0.0, age_s))))
        with redis_errors():
            place: bytes = await self._replication.run(
                "signals", keys.FEEDBACK_BARRIER, "XADD", keys.FEEDBACK_STREAM, "*", *fields
            )
        return place.decode()

    async def length(self) -> int:
        """Return the number of entries in the stream. Raises RedisUnavailable."""
        with redis_errors():
            return int(await self._redis.xlen(keys.FEEDBACK_STREAM))

    async def is_reachable(self) -> bool:
        """Return whether Redis answers right now. Takes at most the operation timeout."""
        try:
            with redis_errors():
                return bool(await self._redis.ping())
        except (RewardloopError, *REDIS_FAILURES):
            return False

    async def bury(self, data: bytes, reason: str) -> None:
        """Put a serialized event that cannot be appended into the dead-letter stream.

        Raises RedisUnavailable or StoreFull.
        """
        letter = (
            *(keys.DEAD_EVENT_FIELD, data),
            *(keys.DEAD_REASON_FIELD, reason),
            *(keys.DEAD_SOURCE_FIELD, ""),
        )
        with redis_errors():
            await self._replication.run("signals", keys.FEEDBACK_BARRIER, "XADD", keys.DEAD_LETTERS, "*", *letter)

    async def _append_group(self, entries: Sequence[Entry]) -> list[Appended | RewardloopError]:
        names: list[str] = [keys.FEEDBACK_STREAM, keys.FEEDBACK_IDS]
        args: list[bytes | str | int] = [self._ttl_s, self._window_ids, *_STORED_NAMES]
        for event_id, key, data, checks, trace in entries:
            args += (data, _about(event_id, key, len(checks), trace))
            for check in checks:
                names.append(check.key)
                args += (check.name, check.limit, check.ttl_s, check.member)
        with redis_errors():
            answers = await self._run(names, args)
            places = answers.decode().split(" ")
            if len(places) != len(entries):
                raise ValueError(f"{len(places)} answers for {len(entries)} events")
        self._on_group(len(entries))
        now = time.time()
        return [self._outcome(answer, now) for answer in places]

    async def _run(self, names: list[str], args: list[bytes | str | int]) -> bytes:
        # redis-py's Script is not used, because its work around this call is a tenth of the cost of a single signal.
        write = functools.partial(self._replication.run, "signals", keys.FEEDBACK_BARRIER)
        try:
            answer: bytes = await write("EVALSHA", _APPEND_SHA, len(names), *names, *args)
        except NoScriptError:
            answer = await write("EVAL", _APPEND, len(names), *names, *args)
        return answer

    def _outcome(self, answer: str, now: float) -> Appended | RewardloopError:
        if answer == "=":
            return _DUPLICATE
        if answer == "#":
            return EventIdConflict("this caller has recorded another signal under this event_id")
        if answer[0] == "!":
            return self._caps.error(answer[1:], now)
        return Appended(answer, False)
