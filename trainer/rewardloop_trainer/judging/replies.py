"""The replies of chat models and what they cost, in one SQLite file that survives a kill.

A reply is kept with its cost in one transaction, so that after a kill no call is paid for twice, but for those that
were in flight: their cost was reserved before, and stays reserved for the day.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rewardloop_trainer.judging.chat import Reply, Request
from rewardloop_trainer.judging.judge import BudgetSpent

WORK = "work.sqlite"
FORMAT_VERSION = 1
_TABLES = """
-- Each reply by the digest of the model's name and its request.
CREATE TABLE reply (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    reply_tokens INTEGER NOT NULL, is_cut INTEGER NOT NULL
) WITHOUT ROWID;
-- What was spent on each day, in UTC.
CREATE TABLE spent (day TEXT PRIMARY KEY, calls INTEGER NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID;
-- Facts that must stay the same, such as the text of a version of a rubric.
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class WorkInUse(Exception):
    """Raised when another process works in the directory."""


class UnusableWork(Exception):
    """Raised for a file of another format, or one that is damaged."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most calls and tokens of a day in UTC; None: no bound. Attempts that fail are calls too."""

    calls: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent, or is reserved, on a day."""

    calls: int
    tokens: int


class WorkFile:
    """The SQLite file of a directory that one process works in. Threads may share an instance."""

    def __init__(self, directory: Path, tables: str = "") -> None:
        """Open the file, and make it if it is not there.

        Args:
            directory: Where it is, as ``work.sqlite``.
            tables: ``CREATE TABLE IF NOT EXISTS`` statements of the command.

        Raises:
            WorkInUse: If another process has it open.
            UnusableWork: If the file has another format or is damaged.
            OSError: If it cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._held = os.open(directory / "work.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.lock = threading.RLock()
        path = directory / WORK
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._held)
            raise WorkInUse(f"{directory}: another process works there") from error
        try:
            self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = FULL")
            made = self.connection.execute("PRAGMA user_version").fetchone()[0]
            if made not in (0, FORMAT_VERSION):
                raise UnusableWork(f"{path}: has the format {made} of another release: choose another directory")
            if not made:
                self.connection.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {FORMAT_VERSION};COMMIT;")
            self.connection.executescript(tables)
        except sqlite3.DatabaseError as error:
            os.close(self._held)
            raise UnusableWork(f"{path}: cannot be read: {error}: remove it, or choose another directory") from error

    def close(self) -> None:
        """Close the file and let another process have it."""
        with self.lock:
            self.connection.close()
            os.close(self._held)

    def hold(self, name: str, value: str) -> bool:
        """Keep a fact, or compare it with what is kept. Returns whether they are the same."""
        with self.lock:
            self.connection.execute("INSERT OR IGNORE INTO fact VALUES (?, ?)", (name, value))
            kept = self.connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()[0]
        return bool(kept == value)


def forget_replies(directory: Path) -> int:
    """Delete the replies that a directory keeps, so that no page of the file holds them. What was spent stays.

    Another thread may have the file open.

    Returns:
        How many replies are gone.

    Raises:
        sqlite3.DatabaseError: If the file is damaged; as sqlite3.OperationalError if it is in use for long.
    """
    with closing(sqlite3.connect(directory / WORK, isolation_level=None, timeout=30.0)) as connection:
        gone = connection.execute("DELETE FROM reply").rowcount
        connection.execute("VACUUM")  # pages that were freed keep what they held
        (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise sqlite3.OperationalError(f"{directory / WORK} is locked")
    return gone


class Replies:
    """Kept replies, and the budget of each day."""

    def __init__(self, work: WorkFile, budget: Budget, clock: Callable[[], float] = lambda: time.time()) -> None:
        self._work, self._budget, self._clock = work, budget, clock

    def get(self, model: str, request: Request) -> Reply | None:
        """Return the reply to the same request of the same model, if there was one."""
        with self._work.lock:
            row = self._work.connection.execute(
                "SELECT text, model, prompt_tokens, reply_tokens, is_cut FROM reply WHERE key = ?",
                (_key(model, request),),
            ).fetchone()
        return None if row is None else Reply(row[0], row[1], row[2], row[3], bool(row[4]))

    def reserve(self, tokens: int) -> str:
        """Take a call and its tokens off the budget of the day, and return the day.

        Raises:
            BudgetSpent: If it does not suffice.
        """
        with self._work.lock:
            day, spent = self._day(), self.spent()
            for name, used, more, most in (
                ("calls", spent.calls, 1, self._budget.calls),
                ("tokens", spent.tokens, tokens, self._budget.tokens),
            ):
                if most is not None and used + more > most:
                    raise BudgetSpent(f"{used:,} of {most:,} {name} of {day} (UTC) are spent")
            self._change(day, 1, tokens)
        return day

    def release(self, day: str, tokens: int) -> None:
        """Give reserved tokens back."""
        with self._work.lock:
            self._change(day, 0, -tokens)

    def keep(self, model: str, request: Request, reply: Reply, day: str, reserved: int) -> None:
        """Keep a reply, and put what it cost in the place of what was reserved.

        If the model does not say what it cost, what was reserved stays.
        """
        cost = (
            reserved if min(reply.prompt_tokens, reply.reply_tokens) < 0 else reply.prompt_tokens + reply.reply_tokens
        )
        row = (_key(model, request), reply.text, reply.model, reply.prompt_tokens, reply.reply_tokens, reply.is_cut)
        with self._work.lock:
            self._work.connection.execute("BEGIN IMMEDIATE")
            try:
                self._work.connection.execute("INSERT OR REPLACE INTO reply VALUES (?, ?, ?, ?, ?, ?)", row)
                self._change(day, 0, cost - reserved)
                self._work.connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._work.connection.execute("ROLLBACK")
                raise

    def spent(self) -> Spent:
        """Return what is spent of the present day's budget."""
        with self._work.lock:
            row = self._work.connection.execute(
                "SELECT calls, tokens FROM spent WHERE day = ?", (self._day(),)
            ).fetchone()
        return Spent(*row) if row else Spent(0, 0)

    def _day(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._clock()))

    def _change(self, day: str, calls: int, tokens: int) -> None:
        self._work.connection.execute(
            "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (day) DO UPDATE SET "
            "calls = calls + excluded.calls, tokens = tokens + excluded.tokens",
            (day, calls, tokens),
        )


def _key(model: str, request: Request) -> bytes:
    said = (model, request.messages, request.max_tokens, request.temperature, request.seed)
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).digest()
