"""dedupe + append: the durable stream of signals."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.redis_link import REDIS_FAILURES, redis_errors, script_text
from rewardloop_server.feedback.caps import Caps, Check
from rewardloop_server.feedback.group_commit import GroupCommit

# Events and bytes in one script call. Redis runs a script without interruption, and syncs its file once for it.
_EVENTS_A_CALL = 128
_BYTES_A_CALL = 4 * 2**20

# The script's names of what it stores, from their one definition.
_STORED_NAMES = (keys.FEEDBACK_SEEN, keys.EVENT_FIELD, keys.ID_FIELD, keys.TRACE_FIELD)

_APPEND = script_text(__package__, "append.lua")
_APPEND_SHA = hashlib.sha1(_APPEND.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """An event ready to append. ``data``: serialized. ``trace``: the traceparent that it was sent in, or ""."""

    event_id: str
    data: bytes
    checks: tuple[Check, ...] = ()
    trace: str = ""

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event is in the stream. ``is_duplicate``: an earlier call had appended it."""

    stream_id: str
    is_duplicate: bool


class FeedbackStream:
    """Appends each event_id once within ``ttl_s`` seconds, and no more than ``caps`` allow.

    ``on_group`` is told how many events each write took. ``carried``: the traceparent that a caller is in, or "".
    """

    def __init__(
        self,
        redis: Redis,
        ttl_s: int,
        caps: Caps | None = None,
        on_group: Callable[[int], None] = lambda events: None,
        carried: Callable[[], str] = lambda: "",
    ) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._caps = caps or Caps()
        self._on_group = on_group
        self._carried = carried
        self._commit: GroupCommit[Entry, Appended | RewardloopError] = GroupCommit(
            self._append_group, most_entries=_EVENTS_A_CALL, most_bytes=_BYTES_A_CALL
        )

    async def append(self, events: Sequence[feedback_pb2.FeedbackEvent]) -> list[Appended | RewardloopError]:
        """Append in order; for each event its place, or why it is refused: TooManySignals or ReplayedSignal.

        Raises RedisUnavailable or StoreFull: then some events may have been appended, and sending all of them again
        appends the rest.
        """
        now, trace = time.time(), self._carried()
        return await self.append_entries(
            [Entry(event.event_id, event.SerializeToString(), self._caps.checks(event, now), trace) for event in events]
        )

    async def append_entries(self, entries: Sequence[Entry]) -> list[Appended | RewardloopError]:
        """As `append`, for events that are serialized already; entries without checks are never refused."""
        return await self._commit.add(entries)

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

    async def _append_group(self, entries: Sequence[Entry]) -> list[Appended | RewardloopError]:
        names: list[str] = [keys.FEEDBACK_STREAM]
        args: list[bytes | str | int] = [self._ttl_s, *_STORED_NAMES]
        for entry in entries:
            names.append(keys.FEEDBACK_SEEN + entry.event_id)
            args += (entry.data, entry.trace, len(entry.checks))
            for check in entry.checks:
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
        # Not redis-py's Script: what that does around this call is a tenth of what a single signal costs.
        command: Callable[..., Awaitable[bytes]] = self._redis.execute_command
        try:
            return await command("EVALSHA", _APPEND_SHA, len(names), *names, *args)
        except NoScriptError:
            return await command("EVAL", _APPEND, len(names), *names, *args)

    def _outcome(self, answer: str, now: float) -> Appended | RewardloopError:
        if answer[0] == "=":
            return Appended(answer[1:], True)
        if answer[0] == "!":
            return self._caps.error(answer[1:], now)
        return Appended(answer, False)
