"""Carries erasures out, step by step, so that a process that is killed at any moment loses nothing by beginning anew.

What a later step needs is erased by none before it. The ledger names the signals, so that the digests of their
event_ids are noted and Redis is cleaned before its rows go; pools, crowd and trust are found by the digests after it.
Redis rewrites its files last. An erasure is done once ledger, work directory and Redis each say so; if one of them is
put back from an old copy it does not, and the erasure is carried out again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import TRAINER, Erasure, Erasures
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.erasure.found import Found, Part, generations_of, in_ledger
from rewardloop_trainer.erasure.learned import versions_that_learned
from rewardloop_trainer.erasure.look import answer_looks, looks_wanted
from rewardloop_trainer.erasure.redis_part import erase_letters, erase_signals, in_stream, rewrite_files
from rewardloop_trainer.erasure.register import Register
from rewardloop_trainer.erasure.shown_part import erase_shown
from rewardloop_trainer.erasure.work_part import WorkFiles, is_busy

log = structlog.get_logger()

_POLL_S = 0.5
_RETRY_S = 5.0
_AFTER_DROPS_S = 5.0


class Eraser:
    """The erasures that this trainer carries out. The thread that writes the ledger calls it.

    Args:
        client: Redis.
        ledger: The ledger.
        work: The work directory.
        store: Its manifests say what versions learned from.
        on_step: Called with the name of each step before it begins; a test ends the process there.
        forget_shown: Called with all erasures before what operators are shown is erased from Redis. What this process
            publishes after it has nothing of them.
    """

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        work: WorkFiles,
        store: ModelStore,
        on_step: Callable[[str], None] = lambda step: None,
        forget_shown: Callable[[Erasures], None] = lambda erasures: None,
    ) -> None:
        self._redis: Any = client
        self._ledger = ledger
        self._work = work
        self._store = store
        self._on_step = on_step
        self._forget_shown = forget_shown
        self._register = Register(client, ledger.small_files)
        self._changed: bytes | None = None
        self._is_read = False
        self._is_look_wanted = False
        self._done: set[str] = set()  # erasures of which ledger, work directory and Redis say that they are done
        self._look_at = float("-inf")
        self._rewrite_at = float("inf")

    def begin(self) -> None:
        """Read which signals are erased, before any is archived.

        Raises redis.RedisError, OSError, and UnreadableErasure for a register that is damaged.
        """
        self._changed = self._redis.get(keys.ERASURES_CHANGED)
        self._done.clear()  # what is read is not what was known: Redis may have lost it
        self._register.read()
        self._is_read = True
        if self._redis.exists(keys.ERASED_AGAIN):
            self._rewrite_at = min(self._rewrite_at, time.monotonic())

    def is_erased(self, event: feedback_pb2.FeedbackEvent) -> bool:
        """Whether a signal that comes from the stream is not to be archived."""
        return self._register.known.is_erased(event)

    def dropped(self) -> None:
        """Note that an erased signal was in the stream again, so that the files of Redis are rewritten once more."""
        if self._rewrite_at == float("inf"):
            self._redis.set(keys.ERASED_AGAIN, "")  # so that a process that is killed until then does not forget it
            self._rewrite_at = time.monotonic() + _AFTER_DROPS_S

    def is_due(self) -> bool:
        """Whether there may be something to carry out. Asks Redis at most twice a second. Raises redis.RedisError."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _POLL_S
        changed: bytes | None = self._redis.get(keys.ERASURES_CHANGED)
        is_new = changed != self._changed
        if is_new or not self._is_read:
            self.begin()
        self._is_look_wanted = looks_wanted(self._redis)
        return now >= self._rewrite_at or self._is_look_wanted or bool(self._pending())

    def carry_out(self) -> None:
        """Carry out what is pending, and say what would be erased to those who ask.

        Nothing may be read from the stream and not yet archived.

        What a round has in use is left for later. Raises redis.RedisError, OSError, `Fenced` and `CorruptSegment`.
        """
        if self._is_look_wanted:
            self._is_look_wanted = False
            answer_looks(self._redis, self._ledger, self._store)
        if pending := self._pending():
            log.warning("erasing", erasures=[each.erasure_id for each in pending])
            try:
                self._carry_out(pending)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise OSError(f"the work directory cannot be written: {error}") from error
                log.info("the erasure waits for the round that reads the pools", retry_in_s=_RETRY_S)
                self._look_at = time.monotonic() + _RETRY_S
        elif time.monotonic() >= self._rewrite_at:
            self._rewrite_files()

    def _pending(self) -> list[Erasure]:
        asked = [each for each in self._register.known.all if each.erasure_id not in self._done]
        if not asked:
            return []
        carried_out = set(self._ledger.erasures) & set(self._work.erasures())
        for each in asked:
            if each.erasure_id in carried_out and self._redis.hexists(keys.ERASURE_REPORTS + each.erasure_id, TRAINER):
                self._done.add(each.erasure_id)
        return [each for each in asked if each.erasure_id not in self._done]

    def _carry_out(self, pending: Sequence[Erasure]) -> None:
        self._on_step("find")
        known = self._register.known
        parts = list(in_ledger(self._ledger, known))
        archived = [each for part in parts for each in part.found]
        waiting = list(in_stream(self._redis, known))
        found = [*archived, *waiting]
        self._on_step("register")
        for erasure in pending:
            digests = {known.event_digests(each.event_id, each.caller)[0] for each in found if erasure in each.erasures}
            self._register.add_events(erasure, digests)
        self._note_places(archived)
        self._on_step("redis")
        gone = erase_signals(self._redis, found, waiting, generations_of(self._ledger, found))
        gone["dead_letters"] = erase_letters(self._redis, known)
        if parts and self._work.has_anchors():
            self._on_step("anchors")
            gone["anchors"] = self._erase_anchors(parts)
        for part in parts:
            self._on_step("ledger")
            self._ledger.remove(part.segment, part.stays)
            gone["ledger"] += len(part.found)
        self._on_step("work")
        self._register.read()  # with the digests of this erasure
        secrets, events = self._register.known.keys, self._register.events
        asked = Erasures(secrets, pending, events)
        gone += self._work.erase(asked, self._ledger.rows_through)
        self._on_step("shown")
        self._forget_shown(self._register.known)
        gone += erase_shown(self._redis, asked, self._store.reports)
        self._on_step("files of redis")
        notes = self._rewrite_files()
        self._on_step("report")
        self._work.note_erasures(each.erasure_id for each in pending)
        self._ledger.note_erasures(each.erasure_id for each in pending)
        for erasure in pending:
            self._report(erasure, gone, notes)

    def _rewrite_files(self) -> list[str]:
        """Have Redis rewrite its files, and return what somebody has to do by hand."""
        notes = rewrite_files(self._redis)
        self._redis.delete(keys.ERASED_AGAIN)
        self._rewrite_at = float("inf")
        return notes

    def _erase_anchors(self, parts: Sequence[Part]) -> int:
        by_name = {part.segment.name: part for part in parts}

        def rows(stays: bool) -> Any:
            for segment in self._ledger.segments:
                part = by_name.get(segment.name)
                for i, row in enumerate(self._ledger.whole_segment(segment) if stays or part else ()):
                    if (part is None or part.stays[i]) == stays:
                        yield row.event

        return self._work.erase_anchors(rows(stays=False), rows(stays=True))

    def _note_places(self, archived: Sequence[Found]) -> None:
        """Keep the lowest place of an erasure's signals by aspect: the ledger will not know it any more."""
        for erasure in {each for one in archived for each in one.erasures}:
            own = [each for each in archived if erasure in each.erasures]
            places = {
                aspect: min((each.stream_id for each in own if each.aspect == aspect), key=order)
                for aspect in {each.aspect for each in own}
            }
            self._register.add_places(erasure, places)

    def _report(self, erasure: Erasure, gone: Counter[str], notes: Sequence[str]) -> None:
        number = self._ledger.erasures.index(erasure.erasure_id) + 1
        versions = versions_that_learned(self._store, self._register.places(erasure), number)
        erased = {**{name: count for name, count in gone.items() if count}, "signals": self._register.count(erasure)}
        report = {"erased": erased, "notes": list(notes), "versions": versions}
        self._redis.hset(keys.ERASURE_REPORTS + erasure.erasure_id, TRAINER, json.dumps(report))
        self._redis.incr(keys.ERASURES_CHANGED)
        log.warning("erased", erasure_id=erasure.erasure_id, versions=len(versions), **erased)
