"""Erases signals from the trainer's work directory: pools, the crowd, trust, anchors, replies, and reports."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from rewardloop.formats.erasing.erasures import Erasures
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.annotators.crowd_file import CROWD, CrowdFile
from rewardloop_trainer.data.pools.database import forget_signals, is_damage
from rewardloop_trainer.data.replay import POOLS
from rewardloop_trainer.data.weights.trust import TRUST, Trust
from rewardloop_trainer.judging.replies import WORK, forget_replies
from rewardloop_trainer.learning.write_whole import write_whole_file

log = structlog.get_logger()

ANCHORS = "anchors.jsonl"
_ERASED = "erased.json"
_STALE_S = 60.0


class WorkFiles:
    """The work directory of a trainer. ``held`` is entered before a change becomes visible."""

    def __init__(self, directory: Path, held: Callable[[], AbstractContextManager[None]]) -> None:
        self._directory = directory
        self._held = held

    def erasures(self) -> list[str]:
        """Return the ids of the erasures that were carried out here."""
        try:
            return [str(each) for each in json.loads((self._directory / _ERASED).read_text())["erasures"]]
        except FileNotFoundError:
            return []

    def note_erasures(self, erasure_ids: Iterable[str]) -> None:
        """Note that erasures were carried out here. Raises OSError."""
        known = list(dict.fromkeys((*self.erasures(), *erasure_ids)))
        write_whole_file(self._directory / _ERASED, json.dumps({"erasures": known}))

    def has_anchors(self) -> bool:
        """Whether texts of users fix the scale of scores, so that `erase_anchors` must be called."""
        return (self._directory / ANCHORS).exists()

    def erase_anchors(
        self, erased: Iterable[feedback_pb2.FeedbackEvent], left: Iterable[feedback_pb2.FeedbackEvent]
    ) -> int:
        """Take out the anchors that only erased signals have. Returns how many.

        Args:
            erased: The signals that are erased.
            left: All others.

        Raises:
            OSError, CorruptAnchors: If the file cannot be read or written.
        """
        # It imports torch, which takes seconds, and few trainers have anchors of their own.
        from rewardloop_trainer.data.preferences import from_event
        from rewardloop_trainer.reward.anchors import Anchor, read_anchors, write_anchors
        from rewardloop_trainer.reward.examples import responses_of

        def anchors_of(events: Iterable[feedback_pb2.FeedbackEvent]) -> set[Anchor]:
            records = (record for event in events for record in from_event(event))
            return {Anchor(each.prompt, text) for each in records for text in responses_of(each)} & known

        path = self._directory / ANCHORS
        anchors = read_anchors(path)
        known = set(anchors)
        if not (gone := anchors_of(erased)) or not (gone := gone - anchors_of(left)):
            return 0
        write_anchors(path, [each for each in anchors if each not in gone])
        log.warning("anchors of the score's scale were erased", anchors=len(gone), left=len(anchors) - len(gone))
        return len(gone)

    def erase(self, erasures: Erasures, rows_through: Callable[[str], int]) -> Counter[str]:
        """Erase what the directory keeps of signals that are erased from the ledger, and of their people.

        Args:
            erasures: Which signals and people.
            rows_through: How many rows the ledger has now up to a stream id.

        Returns:
            How many things are gone, by what they were.

        Raises:
            sqlite3.Error: If a database is in use for long, or cannot be written.
            OSError: If a file cannot be written.
        """
        gone: Counter[str] = Counter()

        def is_gone_key(key: str) -> bool:
            caller, _, event_id = key.rpartition("\x1f")
            return erasures.is_erased_event(event_id, caller)

        def is_gone(key: str, person: str, arrived_ms: int) -> bool:
            caller, _, annotator_id = person.rpartition("\x1f")
            return bool(erasures.of_ids(annotator_id, "", caller, arrived_ms / 1e3)) or is_gone_key(key)

        if (pools := self._directory / POOLS).exists():
            gone["pools"] = forget_signals(pools, erasures.is_erased, is_gone_key, rows_through, self._held())
        if (crowd := self._directory / CROWD).exists():
            with CrowdFile(crowd) as file:
                gone["crowd"] = file.forget(is_gone)
        for path in sorted(self._directory.rglob(TRUST)):
            gone["trust"] += _erase_trust(path, erasures, is_gone_key)
        gone["replies"] = self._forget_replies()
        gone["files"] = self._delete_leftovers()
        return gone

    def _forget_replies(self) -> int:
        """Delete what chat models said in checks, which may quote texts, and keep what was spent of a day."""
        gone = 0
        for path in (self._directory / "checks").glob(f"*/{WORK}"):
            try:
                gone += forget_replies(path.parent)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                shutil.rmtree(path.parent)
                gone += 1
        return gone

    def _delete_leftovers(self) -> int:
        """Delete what may hold texts and is not needed: damaged databases, reports, unfinished files."""
        old = time.time() - _STALE_S
        writing = [path for path in self._directory.rglob("trust.writing") if path.stat().st_mtime < old]
        damaged = [path for name in (POOLS, CROWD) for path in self._directory.glob(f"{Path(name).stem}.damaged")]
        anchors = list(self._directory.glob(".anchors-*"))
        reports = list((self._directory / "reports").glob("*/checks*"))
        for path in (*writing, *damaged, *anchors, *reports):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return len(writing) + len(damaged) + len(anchors) + len(reports)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether a round has a database in use, so that the erasure goes on a little later."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _erase_trust(path: Path, erasures: Erasures, is_gone_key: Callable[[str], bool]) -> int:
    """Take erased people and signals out of a round's estimate of trust. Returns how many entries are gone."""

    def is_gone(person: str) -> bool:
        caller, _, annotator_id = person.rpartition("\x1f")
        return bool(erasures.of_person(annotator_id, caller))

    try:
        trust = Trust.from_json(path.read_text())
    except (ValueError, TypeError) as error:
        log.error("an estimate of trust cannot be read, and is deleted", path=str(path), reason=str(error))
        path.unlink()
        return 1
    hands = {who: hand for who, hand in trust.hands.items() if not is_gone(who)}
    # A hand has the name of one of its people.
    renamed = {
        hand: min(who for who, own in hands.items() if own == hand) for hand in set(hands.values()) if is_gone(hand)
    }
    kept = Trust(
        {who: value for who, value in trust.accuracy.items() if not is_gone(who)},
        {who: value for who, value in trust.by_slice.items() if not is_gone(who)},
        trust.crowd,
        {who: renamed.get(hand, hand) for who, hand in hands.items()},
        {key: value for key, value in trust.signals.items() if not is_gone_key(key)},
    )
    if kept == trust:
        return 0
    write_whole_file(path, kept.to_json())
    parts = ((trust.accuracy, kept.accuracy), (trust.by_slice, kept.by_slice), (trust.hands, kept.hands))
    return sum(len(before) - len(after) for before, after in (*parts, (trust.signals, kept.signals)))
