"""The SQLite file of the pools: its tables, and one transaction a step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import structlog

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.data.pools.near_duplicates import method

log = structlog.get_logger()

FORMAT_VERSION = 1
_CACHE_KIB = 65_536
_TABLES = """
-- Facts about the whole file.
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- Each question that was ever asked: the short hash of its normalised text, its side, whether a conversation began with
-- it, and `Sketch.low`.
CREATE TABLE question (key INTEGER PRIMARY KEY, side INTEGER NOT NULL, is_root INTEGER NOT NULL, low BLOB NOT NULL);
-- The questions that have a band.
CREATE TABLE band (hash INTEGER NOT NULL, key INTEGER NOT NULL, PRIMARY KEY (hash, key)) WITHOUT ROWID;
-- How far each model's pools have come; see `pools.Pools`.
CREATE TABLE model (
    name TEXT PRIMARY KEY, pooled_through TEXT NOT NULL, after TEXT NOT NULL, until TEXT NOT NULL,
    seen INTEGER NOT NULL, changes INTEGER NOT NULL
) WITHOUT ROWID;
-- The signals that a model keeps. `event_id` is `signal_key`, which names the caller too. `place` orders them as the
-- stream does, and `priority` decides which ones stay.
CREATE TABLE signal (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, part INTEGER NOT NULL, event_id TEXT NOT NULL, place INTEGER NOT NULL,
    priority INTEGER NOT NULL, root INTEGER NOT NULL, last INTEGER NOT NULL, by_pair INTEGER NOT NULL,
    passes REAL NOT NULL, is_drawn INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE UNIQUE INDEX signal_by_event ON signal (model, event_id);
CREATE INDEX signal_by_place ON signal (model, part, place);
CREATE INDEX signal_by_priority ON signal (model, part, priority);
CREATE INDEX signal_by_passes ON signal (model, part, passes);
CREATE INDEX signal_drawn ON signal (model, place) WHERE is_drawn = 1;
-- The sides of the signals that are new in a model's present round.
CREATE TABLE fresh (model TEXT NOT NULL, event_id TEXT NOT NULL, side INTEGER NOT NULL, PRIMARY KEY (model, event_id))
    WITHOUT ROWID;
"""


class Database:
    """A connection to the file. A file of another format, or one that is no database, is put aside and begun anew.

    Args:
        path: The file; None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self.connection = self._open()
        except sqlite3.DatabaseError as error:
            if path is None or not is_damage(error):
                raise
            put_aside(path, error)
            self.connection = self._open()

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def step(self, held: AbstractContextManager[None]) -> Iterator[None]:
        """Make the block's changes visible together, or none of them. ``held`` is entered before they are."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with held:
                self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self._path or ":memory:"), isolation_level=None, timeout=30.0)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA synchronous = FULL")
        made = connection.execute("PRAGMA user_version").fetchone()[0]
        if made == 0:
            connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {FORMAT_VERSION};COMMIT;")
            connection.execute("INSERT INTO fact VALUES ('method', ?)", (method(),))
        elif made != FORMAT_VERSION or self._method_of(connection) != method():
            connection.close()
            raise sqlite3.DatabaseError(f"{self._path}: format {made} or its method of near-duplicates is another one")
        return connection

    @staticmethod
    def _method_of(connection: sqlite3.Connection) -> str:
        found = connection.execute("SELECT value FROM fact WHERE name = 'method'").fetchone()
        return "" if found is None else str(found[0])


def forget_all(path: Path, retractions: int, held: AbstractContextManager[None]) -> bool:
    """Empty the pools if they were read when another number of retractions had been counted.

    Returns whether they were emptied. Raises sqlite3.Error, and what entering ``held`` raises.
    """
    database = Database(path)
    try:
        found = database.connection.execute("SELECT value FROM fact WHERE name = 'retractions'").fetchone()
        if (0 if found is None else int(found[0])) == retractions:
            return False
        with database.step(held):
            for table in ("signal", "fresh", "model", "question", "band"):
                database.connection.execute(f"DELETE FROM {table}")
            database.connection.execute("DELETE FROM fact WHERE name != 'method'")
            database.connection.execute("INSERT INTO fact VALUES ('retractions', ?)", (str(retractions),))
        return True
    finally:
        database.close()


def forget_signals(
    path: Path,
    is_gone: Callable[[feedback_pb2.FeedbackEvent], bool],
    is_gone_key: Callable[[str], bool],
    rows_through: Callable[[str], int],
    held: AbstractContextManager[None],
) -> int:
    """Delete signals, which are erased from the ledger, so that no page of the file holds them.

    The hashes of their questions stay: by them a question keeps its side.

    Args:
        path: The file.
        is_gone: Whether to delete a signal.
        is_gone_key: The same by its `signal_key`.
        rows_through: How many rows the ledger has now up to a stream id, so that signals which are archived late are
            still noticed.
        held: Entered before the change becomes visible.

    Returns:
        How many signals are gone.

    Raises:
        sqlite3.Error: If the file cannot be written, and what entering ``held`` raises.
    """
    database = Database(path)
    connection = database.connection
    try:
        with database.step(held):
            gone = [
                (number,)
                for number, event in connection.execute("SELECT id, event FROM signal")
                if is_gone(feedback_pb2.FeedbackEvent.FromString(event))
            ]
            keys = {(key,) for (key,) in connection.execute("SELECT event_id FROM fresh") if is_gone_key(key)}
            connection.executemany("DELETE FROM signal WHERE id = ?", gone)
            connection.executemany("DELETE FROM fresh WHERE event_id = ?", keys)
            for name, until, seen in connection.execute("SELECT name, until, seen FROM model").fetchall():
                least = min(seen, rows_through(until))
                connection.execute("UPDATE model SET seen = ? WHERE name = ?", (least, name))
        connection.execute("VACUUM")  # pages that were freed keep what they held
        return len(gone)
    finally:
        database.close()


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is damaged, and not that there is no room, no permission or a bug."""
    return type(error) is sqlite3.DatabaseError


def is_locked(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that another process is writing."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def put_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    """Rename a damaged file, so that the next connection begins a new one."""
    log.error("the signal pools are damaged, and are read from the ledger again", path=str(path), reason=str(error))
    path.replace(path.with_suffix(".damaged"))
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
