"""Which pairs are to be judged, what was said of them, and what was recorded, in the work file.

A pair goes from "open" to "judged" or "failed", and a judged one to "sent" when its signal is recorded. The opinion and
the change of its state are one transaction, and a signal's event_id is made of judge and pair: a process that is killed
goes on where it was, no pair is recorded twice, and none is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rewardloop_trainer.judging.judge import Duel, Opinion
from rewardloop_trainer.judging.pairs.candidates import Candidate, people_from, people_text, prompt_from, prompt_text
from rewardloop_trainer.judging.replies import WorkFile

# Why a pair was picked: people judged it, its scores are uncertain, or by lot among those that nobody judged.
PickedAs: TypeAlias = Literal["shared", "uncertain", "unasked"]
PairState: TypeAlias = Literal["open", "judged", "sent", "failed"]
PAIR_STATES: tuple[PairState, ...] = ("open", "judged", "sent", "failed")

TABLES = """
CREATE TABLE IF NOT EXISTS pair (
    judge TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL, picked TEXT NOT NULL, prompt TEXT NOT NULL,
    first TEXT NOT NULL, second TEXT NOT NULL, generation TEXT NOT NULL, first_at INTEGER NOT NULL,
    second_at INTEGER NOT NULL, people TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', choice TEXT, probability REAL,
    first_shown REAL, agrees INTEGER, model TEXT, judged_at REAL, PRIMARY KEY (judge, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pair_by_state ON pair (judge, state);
"""
_COLUMNS = "key, picked, prompt, first, second, generation, first_at, second_at, people"
_SAID = "choice, probability, first_shown, agrees, model, judged_at"


@dataclass(frozen=True, slots=True)
class KeptPair:
    """A pair of the journal.

    Attributes:
        key: Names it.
        candidate: The pair with what people said.
        picked: Why it was picked.
        opinion: What the judge said; None while it is open.
        judged_at: When it was judged, in Unix seconds; 0 while it is open.
    """

    key: str
    candidate: Candidate
    picked: PickedAs
    opinion: Opinion | None = None
    judged_at: float = 0.0

    def event_id(self, judge_digest: str) -> str:
        """Name the signal, so that a server records it once however often it is sent."""
        return f"judge-{judge_digest}-{self.key}"


class Journal:
    """The pairs of one judge. Threads may share an instance."""

    def __init__(self, work: WorkFile, judge: str) -> None:
        """Take the work file, which was opened with `TABLES`, and the judge's name."""
        self._work, self._judge = work, judge

    def add(self, picks: Iterable[tuple[Candidate, PickedAs]]) -> int:
        """Add pairs to be judged and return how many are new."""
        rows = [(self._judge, each.key, "open", picked, *_values(each)) for each, picked in picks]
        with self._work.lock:
            before = self._work.connection.total_changes
            self._work.connection.execute("BEGIN IMMEDIATE")
            self._work.connection.executemany(
                f"INSERT OR IGNORE INTO pair (judge, key, state, {_COLUMNS.removeprefix('key, ')}) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._work.connection.execute("COMMIT")
            return self._work.connection.total_changes - before

    def update_people(self, candidates: Mapping[str, Candidate]) -> None:
        """Take what people have said since about pairs that are known."""
        with self._work.lock:
            known = self._work.connection.execute("SELECT key, first, people FROM pair WHERE judge = ?", (self._judge,))
            changed = []
            for key, first, people in known.fetchall():
                if (found := candidates.get(key)) is None or len(found.people) <= len(people_from(people)):
                    continue
                is_same = found.duel.first == first
                said = found.people if is_same else [type(p)(p.annotator, 1 - p.wins) for p in found.people]
                changed.append((people_text(said), self._judge, key))
            self._work.connection.execute("BEGIN IMMEDIATE")
            self._work.connection.executemany("UPDATE pair SET people = ? WHERE judge = ? AND key = ?", changed)
            self._work.connection.execute("COMMIT")

    def judged(self, key: str, opinion: Opinion) -> None:
        """Keep an opinion. One that is kept already stays."""
        with self._work.lock:
            self._work.connection.execute(
                "UPDATE pair SET state = 'judged', choice = ?, probability = ?, first_shown = ?, agrees = ?, "
                "model = ?, judged_at = ? WHERE judge = ? AND key = ? AND state = 'open'",
                (*_said(opinion), time.time(), self._judge, key),
            )

    def failed(self, key: str, reason: str) -> None:
        """Note that a pair cannot be judged, or that its signal is refused."""
        with self._work.lock:
            self._work.connection.execute(
                "UPDATE pair SET state = 'failed', reason = ? WHERE judge = ? AND key = ?", (reason, self._judge, key)
            )

    def sent(self, keys: Iterable[str]) -> None:
        """Note that signals are recorded."""
        with self._work.lock:
            self._work.connection.execute("BEGIN IMMEDIATE")
            self._work.connection.executemany(
                "UPDATE pair SET state = 'sent' WHERE judge = ? AND key = ?", [(self._judge, key) for key in keys]
            )
            self._work.connection.execute("COMMIT")

    def pairs(self, *states: PairState, most: int | None = None) -> list[KeptPair]:
        """Return pairs in these states: those that people judged before the others, else by their keys."""
        marks = ", ".join("?" * len(states))
        with self._work.lock:
            rows = self._work.connection.execute(
                f"SELECT {_COLUMNS}, {_SAID} FROM pair WHERE judge = ? AND state IN ({marks}) "
                "ORDER BY picked != 'shared', key LIMIT ?",
                (self._judge, *states, -1 if most is None else most),
            ).fetchall()
        return [_kept(row) for row in rows]

    def keys(self) -> set[str]:
        """Return the keys of all pairs."""
        with self._work.lock:
            rows = self._work.connection.execute("SELECT key FROM pair WHERE judge = ?", (self._judge,))
            return {key for (key,) in rows.fetchall()}

    def counts(self) -> dict[tuple[PairState, PickedAs], int]:
        """Return how many pairs are in each state, by why they were picked."""
        with self._work.lock:
            rows = self._work.connection.execute(
                "SELECT state, picked, count(*) FROM pair WHERE judge = ? GROUP BY state, picked", (self._judge,)
            ).fetchall()
        return {(state, picked): count for state, picked, count in rows}

    def reasons(self) -> Iterator[tuple[str, int]]:
        """Yield why pairs failed, with their numbers."""
        with self._work.lock:
            rows = self._work.connection.execute(
                "SELECT reason, count(*) FROM pair WHERE judge = ? AND state = 'failed' GROUP BY reason ORDER BY 1",
                (self._judge,),
            ).fetchall()
        yield from rows


def _values(candidate: Candidate) -> tuple[Any, ...]:
    """The columns of a pair from its prompt on, without what was said of it."""
    duel = candidate.duel
    where = candidate.generation_id, candidate.first, candidate.second
    return prompt_text(duel.prompt), duel.first, duel.second, *where, people_text(candidate.people)


def _said(opinion: Opinion) -> tuple[Any, ...]:
    return opinion.choice, opinion.probability, opinion.first_shown, opinion.agrees, opinion.model


def _kept(row: tuple[Any, ...]) -> KeptPair:
    key, picked, prompt, first, second, generation, first_at, second_at, people, *said = row
    duel = Duel(prompt_from(prompt), first, second)
    choice, probability, first_shown, agrees, model, judged_at = said
    opinion = None if choice is None else Opinion(choice, probability, first_shown, bool(agrees), model or "")
    candidate = Candidate(duel, people_from(people), generation, first_at, second_at)
    return KeptPair(key, candidate, picked, opinion, judged_at or 0.0)
