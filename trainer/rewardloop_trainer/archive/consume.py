"""Reads the feedback stream into the ledger: read, decode, archive, then acknowledge.

An entry is acknowledged only when its row is on disk (or its bytes are in the dead-letter stream). A consumer that is
killed before then leaves the entry pending, and the next consumer claims it. The ledger has each signal once: an entry
that was archived but not acknowledged, and a signal that was sent twice, are recognised by caller and event_id.

A row's place in the ledger is its stream id, unless that is not above the ids before it. That happens to entries that
are archived late, and to all entries of a Redis that lost its data and whose clock is behind that of the old one. Such
a row gets the next id above, so that it is new to every reader of the ledger.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.signals import key_of, signal_key
from rewardloop_trainer.archive.dead_letters import LetterBounds, drop_oldest_letters
from rewardloop_trainer.archive.entry import InvalidEntry, decode
from rewardloop_trainer.archive.erased import ErasedSignals, NothingErased
from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.archive.retraction import Retraction, forget_ids, retraction_in
from rewardloop_trainer.archive.stream_reader import Entry, StreamReader, size_of
from rewardloop_trainer.archive.trim import trim_archived
from rewardloop_trainer.metrics import TrainerMetrics

if TYPE_CHECKING:  # OpenTelemetry is not installed unless tracing is on
    from rewardloop_trainer.tracing import TrainerTracing

log = structlog.get_logger()

_READ_COUNT = 1_000
_MAX_PAUSE_S = 5.0
_RECENT_EVENTS = 1_000_000
_LETTERS = LetterBounds()


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """When the consumer writes, looks and tidies up.

    Attributes:
        flush_rows: A segment is written when so many entries are waiting.
        flush_age_s: A segment is written so many seconds after its first entry was read.
        block_ms: How long one read waits for new entries.
        maintain_every_s: How often pending entries are claimed, the stream trimmed and the ledger compacted.
        max_bytes: About the most bytes of entries that are held at once, from the stream to the ledger. Decoded and as
            columns they take several times as much memory.
        max_entry_bytes: An entry of more bytes becomes a dead letter.
        letters: What the dead-letter stream holds.
    """

    flush_rows: int = 5_000
    flush_age_s: float = 2.0
    block_ms: int = 250
    maintain_every_s: float = 10.0
    max_bytes: int = 64 * 2**20
    max_entry_bytes: int = 8 * 2**20
    letters: LetterBounds = _LETTERS


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
        erased: ErasedSignals | None = None,
    ) -> None:
        """``on_archived`` is called after every append, in the thread of `run`, and ``erased`` from there as well."""
        self._redis = client
        self._reader = StreamReader(client, settings.max_entry_bytes, metrics.dead_letters.inc)
        self._ledger = ledger
        self._metrics = metrics
        self._settings = settings
        self._on_archived = on_archived
        self._tracing = tracing
        self._erased = erased or NothingErased()
        self._rows: list[Recorded] = []
        self._unacked: list[str] = []
        self._held_bytes = 0
        self._last_place = (-1, 0) if ledger.last_stream_id is None else order(ledger.last_stream_id)
        self._first_row_at = 0.0
        self._is_joined = False
        self._maintained_at = time.monotonic()
        # A dict keeps insertion order, so the oldest ids are forgotten first.
        self._recent: dict[bytes, None] = dict.fromkeys(map(_short, ledger.signal_keys(newest=_RECENT_EVENTS)))

    def run(self, stop: threading.Event) -> None:
        """Consume until ``stop`` is set, however long Redis is away or the disk full.

        Raises:
            Fenced: If another trainer leads.
        """
        self._metrics.ledger_rows.set(self._ledger.row_count)
        delay = 0.1
        while not stop.is_set():
            try:
                self._reader.join()
                self._erased.begin()
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
            self._held_bytes = 0
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
        return self._reader.is_drained()

    def _claim(self) -> None:
        """Take over every pending entry. By the leader's lock, no other consumer is alive."""
        for found in self._reader.pending():
            ids = found.usual
            while ids:
                entries, looked_at = self._reader.claim(ids, self._bytes_at_once)
                self._take(entries)
                self._flush()
                ids = ids[looked_at:]
            for stream_id in found.suspects:
                self._take_alone(stream_id)

    def _take_alone(self, stream_id: bytes) -> None:
        """Read one entry, under a note in Redis that is deleted only if this process survives."""
        self._reader.note_suspect(stream_id)
        try:
            entries, _ = self._reader.claim([stream_id], self._bytes_at_once)
            self._take(entries)
            self._flush()
        except (*REDIS_FAILURES, OSError, Fenced):
            self._reader.clear_suspect()  # the entry did not cause this
            raise
        except Exception as error:
            for row in self._rows:  # so that it is new if it is requeued
                self._recent.pop(_short(signal_key(row.event)), None)
            self._unacked.clear()
            self._rows.clear()
            self._held_bytes = 0
            self._reader.bury(stream_id.decode(), f"{type(error).__name__} whenever it is read: {error}")
        self._reader.clear_suspect()

    def _bury_killer(self) -> None:
        """Make a dead letter of the entry that an earlier process read alone before it died."""
        stream_id = self._reader.suspect()
        if self._is_joined:  # the note is this process's own
            stream_id = None
        if stream_id is not None and self._reader.is_pending(stream_id) and not self._ledger.keys_at([stream_id]):
            self._reader.bury(stream_id, "the process that read it died")
        self._is_joined = True
        self._reader.clear_suspect()

    @property
    def _bytes_at_once(self) -> int:
        return max(1, self._settings.max_bytes // 4)

    def _step(self) -> None:
        room = max(1, min(_READ_COUNT, self._settings.flush_rows - len(self._unacked)))
        self._take(self._reader.read(room, self._bytes_at_once, self._settings.block_ms))
        is_old = bool(self._unacked) and time.monotonic() - self._first_row_at >= self._settings.flush_age_s
        is_full = self._held_bytes >= self._settings.max_bytes - self._bytes_at_once
        if is_old or is_full or len(self._unacked) >= self._settings.flush_rows:
            self._flush()
        if time.monotonic() - self._maintained_at >= self._settings.maintain_every_s:
            self._maintain()
        if self._erased.is_due():
            self._erase()

    def _take(self, entries: Sequence[Entry]) -> None:
        """Decode entries into the buffer.

        An entry that cannot be decoded becomes a dead letter at once. One that the ledger has already is not buffered,
        and is acknowledged with the others.
        """
        if not entries:
            return
        archived = self._archived_among(entries)
        if not self._unacked:
            self._first_row_at = time.monotonic()
        for raw_id, fields in entries:
            stream_id = raw_id.decode()
            if self._tracing is not None:
                self._tracing.consumed(stream_id, fields)
            if (retraction := retraction_in(stream_id, fields)) is not None:
                self._retract(retraction)
                self._unacked.append(stream_id)
                continue
            try:
                row = decode(stream_id, fields)
            except InvalidEntry as error:
                self._reader.bury(stream_id, str(error))
                continue
            key = signal_key(row.event)
            if self._erased.is_erased(row.event):
                self._reader.delete(stream_id)
                self._erased.dropped()
            elif archived.get(stream_id) == key or _short(key) in self._recent:
                self._metrics.duplicates.inc()
            else:
                self._rows.append(self._placed(row))
                self._remember(key)
            self._unacked.append(stream_id)
            self._held_bytes += size_of((raw_id, fields))

    def _erase(self) -> None:
        """Carry erasures out. What was read is archived first, so that it is found in the ledger."""
        self._flush()
        self._erased.carry_out()
        self._metrics.ledger_rows.set(self._ledger.row_count)

    def _retract(self, retraction: Retraction) -> None:
        """Take an import back. The entries before it are archived first, so that none of its signals comes after."""
        self._archive()
        since = retraction.since
        event_ids = self._ledger.imported(retraction.import_id, retraction.caller, since)
        if since and not event_ids:  # no clock is trusted to say that there is nothing
            since = ""
            event_ids = self._ledger.imported(retraction.import_id, retraction.caller)
        forget_ids(self._redis, event_ids, retraction.caller)
        for event_id in event_ids:
            self._recent.pop(_short(key_of(retraction.caller, event_id)), None)
        gone = self._ledger.retract(retraction.import_id, retraction.caller, since)
        self._metrics.ledger_rows.set(self._ledger.row_count)
        log.info("an import was taken back", import_id=retraction.import_id, signals=gone)

    def _placed(self, row: Recorded) -> Recorded:
        """Return the row at a place above all earlier ones."""
        if (place := order(row.stream_id)) > self._last_place:
            self._last_place = place
            return row
        milliseconds, sequence = self._last_place
        self._last_place = milliseconds, sequence + 1
        return Recorded(f"{milliseconds}-{sequence + 1}", row.event, row.stream_id)

    def _archived_among(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Return the key of the signal that the ledger has at the place of each entry."""
        last = self._ledger.last_stream_id
        old = [i for i in (raw.decode() for raw, _ in entries) if last is not None and order(i) <= order(last)]
        return self._ledger.keys_at(old) if old else {}

    def _remember(self, key: str) -> None:
        self._recent[_short(key)] = None
        if len(self._recent) > _RECENT_EVENTS:
            del self._recent[next(iter(self._recent))]

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
            self._reader.acknowledge(self._unacked)
            self._unacked = []
        self._held_bytes = 0

    def _maintain(self) -> None:
        self._flush()
        self._claim()
        self._metrics.stream_pending.set(trim_archived(self._redis))
        self._metrics.dropped_letters.inc(drop_oldest_letters(self._redis, self._settings.letters))
        self._ledger.compact()
        self._maintained_at = time.monotonic()


def _short(key: str) -> bytes:
    """Return a digest of a signal's key, of which a million fit into little memory."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
