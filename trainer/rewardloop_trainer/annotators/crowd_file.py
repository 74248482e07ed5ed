"""Keeps what is needed of each signal to know the crowd, so that a round reads the new segments of the ledger alone.

The file has no text: prompts and responses are hashes. It holds the newest signals up to a bound. A file that was lost
or damaged is read from the ledger again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from rewardloop.formats.signals import person_of, signal_key
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.annotators.gestures import Gesture, aspect_asked, gesture_of, short
from rewardloop_trainer.annotators.votes import Floats, Votes, make_votes, votes_of
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.pools.database import is_damage, put_aside
from rewardloop_trainer.data.preferences import from_event

CROWD = "annotators.sqlite"
_FORMAT_VERSION = 2
_STEP_ROWS = 20_000
_TABLES = """
DROP TABLE IF EXISTS fact;
DROP TABLE IF EXISTS signal;
DROP TABLE IF EXISTS vote;
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- Each signal that is kept; the columns are those of `Gesture`. `margin` is what a model that did not learn from the
-- person says of its pair, as log odds of a vote for the winner.
CREATE TABLE signal (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, person TEXT NOT NULL, source TEXT NOT NULL, caller TEXT NOT NULL,
    arrived INTEGER NOT NULL, given INTEGER, first INTEGER, longer INTEGER, button TEXT NOT NULL,
    characters INTEGER NOT NULL, content INTEGER NOT NULL, question INTEGER NOT NULL, wins BLOB NOT NULL,
    loses BLOB NOT NULL, slices TEXT NOT NULL, guideline TEXT NOT NULL, kind TEXT NOT NULL, margin REAL
);
CREATE INDEX signal_by_person ON signal (person);
-- The votes in it: the hash of the prompt and of the aspect that was judged, those of the two responses, and which of
-- them is better.
CREATE TABLE vote (
    signal INTEGER NOT NULL, prompt INTEGER NOT NULL, first INTEGER NOT NULL, second INTEGER NOT NULL,
    choice INTEGER NOT NULL, weight REAL NOT NULL
);
CREATE INDEX vote_by_signal ON vote (signal);
"""
_COLUMNS = (
    "key, person, source, caller, arrived, given, first, longer, button, characters, content, question, wins, loses"
)


@dataclass(frozen=True, slots=True)
class CrowdVotes:
    """The votes of a crowd.

    Attributes:
        votes: The votes of people, in the order of the ledger.
        margins: (n,), the log odds that the first response of a vote's item is voted for, by a model that did not learn
            from its person; NaN where there is none.
        kinds: The kind of each vote's signal, n.
        keys: The key of its signal (`signal_key`), n.
    """

    votes: Votes
    margins: Floats
    kinds: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def last(self) -> CrowdVotes:
        """Each person's last vote on each item."""
        kept = self.votes.is_last
        places = kept.nonzero()[0].tolist()
        kinds, keys = (tuple(of[place] for place in places) for of in (self.kinds, self.keys))
        return CrowdVotes(self.votes.where(kept), self.margins[kept], kinds, keys)


class CrowdFile:
    """The file at ``path``; None keeps it in memory. ``most`` signals are kept at most.

    A change is made whole or not at all.
    """

    def __init__(self, path: Path | None, most: int = 200_000) -> None:
        self._most = most
        try:
            self._connection = self._open(path)
        except sqlite3.DatabaseError as error:
            if path is None or not is_damage(error):
                raise
            put_aside(path, error)
            self._connection = self._open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def take_in(self, ledger: Ledger, until: str | None = None) -> int:
        """Read what the ledger has since the last call, up to ``until``. Returns the number of signals read.

        Raises:
            CorruptSegment: If a segment of the ledger cannot be read.
            Fenced: If another trainer leads.
            sqlite3.Error: If the file cannot be written.
        """
        through = self.through
        if until is not None and through and order(through) >= order(until):
            return 0
        count = 0
        for rows in ledger.parts(through or None, until, most_rows=_STEP_ROWS):
            with self._step(ledger.held()):
                self._add(rows)
                last = max((row.stream_id for row in rows), key=order)
                self._connection.execute("INSERT OR REPLACE INTO fact VALUES ('through', ?)", (last,))
                self._trim()
            count += len(rows)
        return count

    def add(self, events: Iterable[feedback_pb2.FeedbackEvent]) -> None:
        """Take in signals that are in no ledger, such as those of a file."""
        with self._step():
            self._add([Recorded("", event) for event in events])
            self._trim()

    @property
    def through(self) -> str:
        """The last place of the ledger that was read; "" at first."""
        found = self._connection.execute("SELECT value FROM fact WHERE name = 'through'").fetchone()
        return "" if found is None else str(found[0])

    def note_margins(self, margins: Mapping[str, float]) -> None:
        """Note what a model says of signals, by `signal_key`: log odds of a vote for the response that won."""
        with self._step():
            rows = ((margin, key) for key, margin in margins.items())
            self._connection.executemany("UPDATE signal SET margin = ? WHERE key = ?", rows)

    def forget(self, is_gone: Callable[[str, str, int], bool]) -> int:
        """Delete signals, which are erased from the ledger, so that no page of the file holds them.

        Args:
            is_gone: Whether to delete the signal with this key (`signal_key`), person (`person_of`) and arrival, in
                Unix milliseconds.

        Returns:
            How many signals are gone.

        Raises:
            sqlite3.Error: If the file cannot be written.
        """
        with self._step():
            rows = self._connection.execute("SELECT id, key, person, arrived FROM signal").fetchall()
            gone = [(number,) for number, key, person, arrived in rows if is_gone(key, person, arrived)]
            self._connection.executemany("DELETE FROM vote WHERE signal = ?", gone)
            self._connection.executemany("DELETE FROM signal WHERE id = ?", gone)
        self._connection.execute("VACUUM")  # pages that were freed keep what they held
        return len(gone)

    def gestures(self) -> list[Gesture]:
        """Return how each signal of people was given, in the order of the ledger."""
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM signal WHERE source = 'human' ORDER BY id")
        return [_gesture(row) for row in rows]

    def votes(self) -> CrowdVotes:
        """Return the votes of people."""
        rows = self._connection.execute(
            "SELECT s.person, v.prompt, v.first, v.second, v.choice, v.weight, s.slices, s.margin, s.kind, s.key "
            "FROM vote v JOIN signal s ON s.id = v.signal WHERE s.source = 'human' ORDER BY s.id, v.rowid"
        ).fetchall()
        kept = make_votes(
            [(r[0], (r[1], r[2], r[3]), r[4]) for r in rows],
            [r[5] for r in rows],
            [tuple(json.loads(r[6])) for r in rows],
        )
        # A margin is the winner's; where the second response won it is turned round.
        margins = [np.nan if r[7] is None or r[4] > 1 else r[7] * (1 - 2 * r[4]) for r in rows]
        return CrowdVotes(
            kept, np.asarray(margins, dtype=np.float64), tuple(r[8] for r in rows), tuple(r[9] for r in rows)
        )

    @contextmanager
    def _step(self, held: AbstractContextManager[None] | None = None) -> Iterator[None]:
        """Make the block's changes visible together, or none of them. ``held`` is entered before they are."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with held or nullcontext():
                self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def _add(self, rows: Iterable[Recorded]) -> None:
        for row in rows:
            event = row.event
            gesture = gesture_of(event)
            done = self._connection.execute(
                f"INSERT OR IGNORE INTO signal (id, {_COLUMNS}, slices, guideline, kind) "
                f"VALUES (NULL, {', '.join('?' * 17)})",
                (
                    *(signal_key(event), person_of(event), gesture.source, gesture.caller, gesture.arrived_ms),
                    *(gesture.given_ms, gesture.first_won, gesture.longer_won, gesture.button, gesture.characters),
                    *(gesture.content, gesture.question, _bytes(gesture.wins), _bytes(gesture.loses)),
                    json.dumps([f"{key}={value}" for key, value in sorted(event.tags.items())]),
                    event.guideline_version,
                    str(event.WhichOneof("signal")),
                ),
            )
            if done.rowcount and gesture.person:
                self._add_votes(int(done.lastrowid or 0), event)

    def _add_votes(self, signal: int, event: feedback_pb2.FeedbackEvent) -> None:
        votes, _ = votes_of(from_event(event))
        for item, choice, weight in zip(votes.item.tolist(), votes.choice.tolist(), votes.weight.tolist(), strict=True):
            prompt, one, other = votes.items[item]
            asked = short((*aspect_asked(event), *(f"{turn.role}\x1e{turn.content}" for turn in prompt)))
            row = (signal, asked, short((one,)), short((other,)), choice, weight)
            self._connection.execute("INSERT INTO vote VALUES (?, ?, ?, ?, ?, ?)", row)

    def _trim(self) -> None:
        (count,) = self._connection.execute("SELECT COUNT(*) FROM signal").fetchone()
        if (over := count - self._most) > 0:
            oldest = "SELECT id FROM signal ORDER BY id LIMIT ?"
            self._connection.execute(f"DELETE FROM vote WHERE signal IN ({oldest})", (over,))
            self._connection.execute(f"DELETE FROM signal WHERE id IN ({oldest})", (over,))

    @staticmethod
    def _open(path: Path | None) -> sqlite3.Connection:
        connection = sqlite3.connect(str(path or ":memory:"), isolation_level=None, timeout=30.0)
        made = connection.execute("PRAGMA user_version").fetchone()[0]
        if made < _FORMAT_VERSION:  # also an older release's, which is read from the ledger again
            connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {_FORMAT_VERSION};COMMIT;")
        elif made > _FORMAT_VERSION:
            connection.close()
            raise sqlite3.DatabaseError(f"{path}: format {made} is another one")
        return connection


def _gesture(row: tuple[Any, ...]) -> Gesture:
    """Return the gesture in a row of `_COLUMNS`."""
    key, person, source, caller, arrived, given, first, longer, button, characters, content, question, wins, loses = row
    return Gesture(
        key,
        person,
        source,
        caller,
        arrived,
        given,
        _flag(first),
        _flag(longer),
        button,
        characters,
        content,
        question,
        _numbers(wins),
        _numbers(loses),
    )


def _bytes(hashes: tuple[int, ...]) -> bytes:
    return np.asarray(hashes, dtype="<i8").tobytes()


def _numbers(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, dtype="<i8").tolist())


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
