"""Reads the feedback stream into the ledger: read, decode, archive, then acknowledge.

An entry is acknowledged only when its row is on disk (or its bytes are in the dead-letter stream). A consumer that is
killed before then leaves the entry pending, and the next consumer claims it. The ledger has each signal once: an entry
that was archived but not acknowledged is recognised by its stream id, and a signal that was sent twice by its event_id.

An entry that was read several times and is not archived may be what ends the process each time. The consumer then
reads it alone. If that ends the process again, the next consumer makes it a dead letter instead of reading it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop_trainer.archive.entry import InvalidEntry, decode
from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.archive.trim import trim_archived
from rewardloop_trainer.metrics import TrainerMetrics

if TYPE_CHECKING:  # OpenTelemetry is not installed unless tracing is on
    from rewardloop_trainer.tracing import TrainerTracing

log = structlog.get_logger()

_READ_COUNT = 1_000
# An entry is also read again after a kill from outside or a full disk, so a few reads are no reason for suspicion.
_READS_OF_A_SUSPECT = 3
# Only one trainer leads, so every consumer has the same name.
_CONSUMER_NAME = "trainer"
_MAX_PAUSE_S = 5.0
_RECENT_EVENTS = 1_000_000

Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """When the consumer writes, looks and tidies up.

    Attributes:
        flush_rows: A segment is written when so many entries are waiting.
        flush_age_s: A segment is written so many seconds after its first entry was read.
        block_ms: How long one read waits for new entries.
        maintain_every_s: How often pending entries are claimed, the stream trimmed and the ledger compacted.
    """

    flush_rows: int = 5_000
    flush_age_s: float = 2.0
    block_ms: int = 250
    maintain_every_s: float = 10.0


class Consumer:
    """The only reader of the stream's consumer group. `run` belongs in a thread of its own."""

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        metrics: TrainerMetrics,
        settings: ConsumerSettings,
        *,
        on_archived: Callable[[], None] = lambda: None,
        tracing: TrainerTracing | None = None,
    ) -> None:
        """``on_archived`` is called after every append, in the thread of `run`."""
        self._redis: Any = client  # redis-py's types are unions over every protocol version and decoding
        self._ledger = ledger
        self._metrics = metrics
        self._settings = settings
        self._on_archived = on_archived
        self._tracing = tracing
        self._rows: list[Recorded] = []
        self._unacked: list[str] = []
        self._first_row_at = 0.0
        self._is_joined = False
        self._maintained_at = time.monotonic()
        # A dict keeps insertion order, so the oldest ids are forgotten first.
        self._recent: dict[str, None] = dict.fromkeys(ledger.event_ids(newest=_RECENT_EVENTS))

    def run(self, stop: threading.Event) -> None:
        """Consume until ``stop`` is set, however long Redis is away or the disk full.

        Raises:
            Fenced: If another trainer leads.
        """
        self._metrics.ledger_rows.set(self._ledger.row_count)
        delay = 0.1
        while not stop.is_set():
            try:
                self._join()
                self._bury_killer()
                self._claim()
                while not stop.is_set():
                    self._step()
                    self._metrics.redis_up.set(1)
                    delay = 0.1
                break
            except REDIS_FAILURES as error:
                if "NOGROUP" in str(error):
                    log.warning("the consumer group is gone: making it again", group=keys.FEEDBACK_GROUP)
                else:
                    self._metrics.redis_errors.inc()
                    self._metrics.redis_up.set(0)
                    log.warning("Redis does not answer", error=str(error), retry_in_s=delay)
                    stop.wait(delay)
                    delay = min(2 * delay, _MAX_PAUSE_S)
            except OSError as error:
                self._metrics.disk_errors.inc()
                log.error("the ledger cannot be written: signals wait in Redis", error=str(error))
                stop.wait(delay)
                delay = min(2 * delay, _MAX_PAUSE_S)
            # Redis may come back without its last second of writes, so the rows that are held here are archived first.
            delay = self._archive_when_there_is_room(stop, delay)
            # These entries are still pending or, if the group is gone, unread: they are claimed or read after `_join`.
            self._unacked.clear()
        self._archive()
        try:
            self._acknowledge()
        except REDIS_FAILURES as error:
            log.warning(
                "signals were archived but not acknowledged: the next start acknowledges them", error=str(error)
            )

    def _archive_when_there_is_room(self, stop: threading.Event, delay: float) -> float:
        while not stop.is_set():
            try:
                self._archive()
                break
            except OSError:
                self._metrics.disk_errors.inc()
                stop.wait(delay)
                delay = min(2 * delay, _MAX_PAUSE_S)
        return delay

    def drained(self) -> bool:
        """Say whether everything in the stream is archived and acknowledged. Raises redis.RedisError."""
        for group in self._redis.xinfo_groups(keys.FEEDBACK_STREAM) if self._redis.exists(keys.FEEDBACK_STREAM) else ():
            if group["name"] == keys.FEEDBACK_GROUP.encode():
                unread = self._redis.xrange(keys.FEEDBACK_STREAM, b"(" + group["last-delivered-id"], "+", count=1)
                return not unread and not group["pending"]
        return False

    def _join(self) -> None:
        try:
            self._redis.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _claim(self) -> None:
        """Take over every pending entry. By the leader's lock, no other consumer is alive."""
        suspects = self._suspects()
        cursor: bytes | str = "0-0"
        while True:
            cursor, entries, *_ = self._redis.xautoclaim(
                keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, _CONSUMER_NAME, 0, cursor, count=_READ_COUNT
            )
            present = [entry for entry in entries if entry[0] is not None]
            self._take([entry for entry in present if entry[0] not in suspects])
            self._flush()
            for entry in present:
                if entry[0] in suspects:
                    self._take_alone(entry)
            if cursor == b"0-0":
                break
        self._forget_deleted()

    def _suspects(self) -> set[bytes]:
        """Return the pending entries that were read so often that one of them may end the process."""
        pending = self._redis.xpending_range(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, "-", "+", 10_000)
        return {entry["message_id"] for entry in pending if entry["times_delivered"] >= _READS_OF_A_SUSPECT}

    def _take_alone(self, entry: Entry) -> None:
        """Read one entry, under a note in Redis that is deleted only if this process survives."""
        self._redis.set(keys.SUSPECT, entry[0])
        try:
            self._take([entry])
            self._flush()
        except (*REDIS_FAILURES, OSError, Fenced):
            self._redis.delete(keys.SUSPECT)  # the entry did not cause this
            raise
        except Exception as error:
            self._unacked.clear()
            self._rows.clear()
            self._bury(entry[0].decode(), entry[1], f"{type(error).__name__} whenever it is read: {error}")
        self._redis.delete(keys.SUSPECT)

    def _bury_killer(self) -> None:
        """Make a dead letter of the entry that an earlier process read alone before it died."""
        stream_id: bytes | None = self._redis.get(keys.SUSPECT)
        if stream_id is not None and not self._is_joined:  # after joining, the note is this process's own
            for raw_id, fields in self._redis.xrange(keys.FEEDBACK_STREAM, stream_id, stream_id):
                if not self._ledger.holds([raw_id.decode()]):
                    self._bury(raw_id.decode(), fields, "the process that read it died")
        self._is_joined = True
        self._redis.delete(keys.SUSPECT)

    def _forget_deleted(self) -> None:
        """Acknowledge pending ids that are no longer in the stream, which would hold up trimming for ever."""
        for pending in self._redis.xpending_range(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, "-", "+", 10_000):
            stream_id: bytes = pending["message_id"]
            if not self._redis.xrange(keys.FEEDBACK_STREAM, stream_id, stream_id):
                log.error("a pending entry was deleted from the stream", stream_id=stream_id.decode())
                self._redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, stream_id)

    def _step(self) -> None:
        room = min(_READ_COUNT, self._settings.flush_rows - len(self._unacked))
        read = self._redis.xreadgroup(
            keys.FEEDBACK_GROUP,
            _CONSUMER_NAME,
            {keys.FEEDBACK_STREAM: ">"},
            count=max(1, room),
            block=self._settings.block_ms,
        )
        self._take(read[0][1] if read else [])
        is_old = bool(self._unacked) and time.monotonic() - self._first_row_at >= self._settings.flush_age_s
        if is_old or len(self._unacked) >= self._settings.flush_rows:
            self._flush()
        if time.monotonic() - self._maintained_at >= self._settings.maintain_every_s:
            self._maintain()

    def _take(self, entries: Iterable[Entry]) -> None:
        """Decode entries into the buffer.

        An entry that cannot be decoded becomes a dead letter at once. One that the ledger has already is not buffered,
        and is acknowledged with the others.
        """
        entries = list(entries)
        if not entries:
            return
        archived = self._archived_among(entries)
        if not self._unacked:
            self._first_row_at = time.monotonic()
        for raw_id, fields in entries:
            stream_id = raw_id.decode()
            if self._tracing is not None:
                self._tracing.consumed(stream_id, fields)
            try:
                row = decode(stream_id, fields)
            except InvalidEntry as error:
                self._bury(stream_id, fields, str(error))
                continue
            if stream_id in archived or row.event.event_id in self._recent:
                self._metrics.duplicates.inc()
            else:
                self._rows.append(row)
                self._remember(row.event.event_id)
            self._unacked.append(stream_id)

    def _archived_among(self, entries: Iterable[Entry]) -> set[str]:
        last = self._ledger.last_stream_id
        old = [i for i in (raw.decode() for raw, _ in entries) if last is not None and order(i) <= order(last)]
        return self._ledger.holds(old) if old else set()

    def _remember(self, event_id: str) -> None:
        self._recent[event_id] = None
        if len(self._recent) > _RECENT_EVENTS:
            del self._recent[next(iter(self._recent))]

    def _bury(self, stream_id: str, fields: dict[bytes, bytes], reason: str) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            letter = {
                keys.DEAD_EVENT_FIELD: fields.get(keys.EVENT_FIELD.encode(), b""),
                keys.DEAD_REASON_FIELD: reason,
                keys.DEAD_SOURCE_FIELD: stream_id,
            }
            pipe.xadd(keys.DEAD_LETTERS, letter)
            pipe.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, stream_id)
            pipe.execute()
        self._metrics.dead_letters.inc()
        log.warning("dead letter", stream_id=stream_id, reason=reason)

    def _flush(self) -> None:
        self._archive()
        self._acknowledge()

    def _archive(self) -> None:
        if not self._rows:
            return
        with self._tracing.archiving(len(self._rows)) if self._tracing else nullcontext():
            self._ledger.append(self._rows)
        self._metrics.archived(row.event for row in self._rows)
        self._metrics.ledger_rows.set(self._ledger.row_count)
        log.debug("archived", rows=len(self._rows), last=self._rows[-1].stream_id)
        self._rows = []
        self._on_archived()

    def _acknowledge(self) -> None:
        if self._unacked:
            self._redis.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, *self._unacked)
            self._unacked = []

    def _maintain(self) -> None:
        self._flush()
        self._claim()
        self._metrics.stream_pending.set(trim_archived(self._redis))
        self._ledger.compact()
        self._maintained_at = time.monotonic()
