"""The signals that a model keeps between rounds, so that a round reads the new segments of the ledger and no others.

Of training, the newest signals that the model has learned are kept, and a uniform sample of the older ones. Of the
held-out signals, and of those that only a judge is trained on, a uniform sample of all so far is kept. Which ones stay
depends on a hash of their event ids, so that a file that was lost is read from the ledger again with the same content.

Each signal has a budget of passes: how often training sees it over its life. A round passes over its new signals and
draws old ones, among those that have passes left, so that every signal gets its budget on average and never more than
`MOST_PASSES` times that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

import structlog

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import aspect_of, signal_key
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.pools.database import Database
from rewardloop_trainer.data.pools.near_duplicates import short_hash
from rewardloop_trainer.data.pools.sides import FEW, QuestionSide, Sides
from rewardloop_trainer.data.preferences import from_event
from rewardloop_trainer.data.split import Side

log = structlog.get_logger()

MOST_PASSES = 2.0
_STEP_ROWS = 20_000
_UNKNOWN = 2**62  # rows seen, while the first signals are taken in
# Training signals that so many times the newest ones follow in the ledger are old, whatever the shares of sides are.
_SURELY_OLD = 4


class Part(IntEnum):
    """A pool of a model; the numbers are stored."""

    RECENT = 0
    OLD = 1
    HELDOUT = 2
    JUDGE = 3


_PART_OF: dict[Side, Part] = {"train": Part.RECENT, "heldout": Part.HELDOUT, "judge": Part.JUDGE}
_CODES: dict[Side, QuestionSide] = {
    "train": QuestionSide.TRAIN,
    "heldout": QuestionSide.HELDOUT,
    "judge": QuestionSide.JUDGE,
}


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the pools hold, and how often a signal is learned.

    Attributes:
        heldout_share: Share of questions that training never sees.
        judge_share: Share of questions that only an independent judge is trained on.
        newest: The newest training signals that are kept, and the most new ones of a round.
        replayed: Older training signals that are kept.
        max_heldout: Held-out signals that are kept.
        max_judge: Signals for a judge that are kept.
        passes: Expected passes of training over a signal, the first included; at least 1.
        epochs: Passes of one round over its data.
        few: How many questions are split by pair.
    """

    heldout_share: float = 0.1
    judge_share: float = 0.0
    newest: int = 200_000
    replayed: int = 50_000
    max_heldout: int = 4_000
    max_judge: int = 20_000
    passes: float = 3.0
    epochs: float = 1.0
    few: int = FEW

    def size(self, part: Part) -> int:
        return (self.newest, self.replayed, self.max_heldout, self.max_judge)[part]


@dataclass(frozen=True, slots=True)
class RoundRange:
    """The signals of a round: it learns those with after < stream id <= until, and has learned those before.

    It learns from the signals of one aspect alone.
    """

    model: str
    after: str
    until: str
    seed: int = 0
    aspect: str = REWARD


@dataclass(frozen=True, slots=True)
class _Row:
    """A signal with a record, and where it belongs."""

    recorded: Recorded
    side: Side
    by_pair: bool
    root: int
    last: int


class Pools:
    """The pools of all models in one file; with ``path`` None in memory.

    A change is made whole or not at all, also by a process that is killed.
    """

    def __init__(self, path: Path | None, limits: PoolLimits) -> None:
        self._database = Database(path)
        self._connection = self._database.connection
        self._limits = limits
        self._sides = Sides(self._connection, limits.heldout_share, limits.judge_share, limits.few)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def prepare(self, ledger: Ledger, asked: RoundRange) -> None:
        """Take in what the model has learned before the round, place its new signals, and draw the old ones.

        A round that was prepared before, by a process that died, is left as it is.

        Raises:
            CorruptSegment: If a segment of the ledger cannot be read.
            Fenced: If another trainer leads.
            sqlite3.Error: If the file cannot be written.
        """
        known = self._connection.execute("SELECT * FROM model WHERE name = ?", (asked.model,)).fetchone()
        if known is not None and (known[2], known[3]) == (asked.after, asked.until):
            return
        pooled = "" if known is None else str(known[1])
        begins = max(asked.after, ledger.newest_from(self._limits.newest, asked.until), key=lambda i: order(i or "0"))
        if order(pooled or "0") > order(begins or "0"):
            log.warning("the pools are ahead of the round: reading them from the ledger again", model=asked.model)
            self._forget(ledger, asked.model)
            known, pooled = None, ""
        if known is not None and ledger.rows_through(known[3]) > known[4]:
            log.info("signals were archived late: reading the pools from the ledger again", model=asked.model)
            pooled = ""
        self._take_in(ledger, asked, pooled, begins, learned=asked.after if known is None else str(known[3]))
        changes = -1 if known is None else int(known[5])
        with self._database.step(ledger.held()):
            self._place_new(ledger, asked, begins)
            if changes != self._sides.changes:
                self._drop_overtaken(asked.model)
            self._draw(asked)
            self._note(ledger, asked, begins)

    def range(self, model: str) -> tuple[str, str]:
        """Return the stream ids after which, and until which, the signals of the prepared round are new."""
        found = self._connection.execute("SELECT pooled_through, until FROM model WHERE name = ?", (model,)).fetchone()
        return ("", "") if found is None else (str(found[0]), str(found[1]))

    def fresh(self, model: str) -> dict[str, Side]:
        """Return the side of each new signal by its `signal_key`. A signal that is not named belongs to no side."""
        names = {int(code): side for side, code in _CODES.items()}
        found = self._connection.execute("SELECT event_id, side FROM fresh WHERE model = ?", (model,))
        return {event_id: names[side] for event_id, side in found if side in names}

    def drawn(self, model: str) -> Iterator[feedback_pb2.FeedbackEvent]:
        """Yield the old signals of the prepared round in stream order."""
        return self._events("model = ? AND is_drawn = 1", model)

    def trained(self, model: str) -> Iterator[feedback_pb2.FeedbackEvent]:
        """Yield every training signal that is kept and not new, in stream order."""
        for part in (Part.OLD, Part.RECENT):
            yield from self._events(f"model = ? AND part = {part:d}", model)

    def apart(self, model: str, part: Part) -> tuple[list[feedback_pb2.FeedbackEvent], bool]:
        """Return the signals of a held-out or judge pool in stream order, and whether they are split by pair.

        Signals of questions that are split by pair are left out as soon as the others are of `FEW` questions.
        """
        of_part = f"model = ? AND part = {part:d}"
        (questions,) = self._connection.execute(
            f"SELECT COUNT(DISTINCT root) FROM signal WHERE {of_part} AND by_pair = 0", (model,)
        ).fetchone()
        if questions >= self._limits.few:
            return list(self._events(f"{of_part} AND by_pair = 0", model)), False
        return list(self._events(of_part, model)), True

    def passes(self, model: str) -> list[float]:
        """Return the passes so far of each training signal that is kept."""
        found = self._connection.execute("SELECT passes FROM signal WHERE model = ? AND part <= 1", (model,))
        return [float(passes) for (passes,) in found]

    def _events(self, where: str, model: str) -> Iterator[feedback_pb2.FeedbackEvent]:
        for (event,) in self._connection.execute(
            f"SELECT event FROM signal WHERE {where} ORDER BY place, id", (model,)
        ):
            yield feedback_pb2.FeedbackEvent.FromString(event)

    def _take_in(self, ledger: Ledger, asked: RoundRange, pooled: str, begins: str, *, learned: str) -> None:
        """Put the signals with pooled < stream id <= begins into the pools, some thousand in each transaction.

        Rounds have learned those up to ``learned``.
        """
        if order(pooled or "0") >= order(begins or "0"):
            return
        left = ledger.rows_after(pooled or None)
        learned_through = order(learned or "0")
        for chunk in ledger.parts(pooled or None, begins, most_rows=_STEP_ROWS):
            left -= len(chunk)
            with self._database.step(ledger.held()):
                before: list[_Row] = []
                skipped: list[_Row] = []
                for row in self._placed(asked, chunk):
                    is_learned = order(row.recorded.stream_id) <= learned_through
                    (before if is_learned else skipped).append(row)
                is_old = left > _SURELY_OLD * self._limits.newest
                self._keep(asked, before, self._spent(asked.model), is_old=is_old)
                self._keep(asked, skipped, {}, is_old=is_old)
                through = max((row.stream_id for row in chunk), key=order)
                self._connection.execute(
                    "INSERT INTO model VALUES (?, ?, '', ?, ?, -1) "
                    "ON CONFLICT (name) DO UPDATE SET pooled_through = excluded.pooled_through",
                    (asked.model, through, learned, _UNKNOWN),
                )
                self._trim(asked.model)
                self._sides.keep()

    def _spent(self, model: str) -> dict[str, float]:
        """Return the passes of the signals that were new in the last round; others have spent all of theirs."""
        found = self._connection.execute("SELECT event_id FROM fresh WHERE model = ?", (model,))
        return {event_id: self._limits.epochs for (event_id,) in found} | {"": self._limits.passes * MOST_PASSES}

    def _placed(self, asked: RoundRange, rows: Iterable[Recorded]) -> Iterator[_Row]:
        """Yield the rows of the round's aspect that have a record and a side."""
        frozen = self.fresh(asked.model)
        for row in rows:
            if aspect_of(row.event) != asked.aspect:
                continue
            for record in from_event(row.event):
                placed = self._sides.place(record.prompt, record)
                side = frozen.get(signal_key(row.event), placed.side)
                if side is not None:
                    yield _Row(row, side, placed.by_pair, placed.root, placed.last)

    def _place_new(self, ledger: Ledger, asked: RoundRange, begins: str) -> None:
        self._connection.execute("DELETE FROM fresh WHERE model = ?", (asked.model,))
        seen = "SELECT 1 FROM signal WHERE model = ? AND event_id = ?"
        rows = (
            row
            for row in ledger.scan(begins or None, asked.until)
            if self._connection.execute(seen, (asked.model, signal_key(row.event))).fetchone() is None
        )
        apart = []
        for row in self._placed(asked, rows):
            code = int(_CODES[row.side])
            key = signal_key(row.recorded.event)
            self._connection.execute("INSERT OR IGNORE INTO fresh VALUES (?, ?, ?)", (asked.model, key, code))
            if row.side != "train":
                apart.append(row)
        self._keep(asked, apart, {})
        self._trim(asked.model)
        self._sides.keep()

    def _keep(self, asked: RoundRange, rows: Iterable[_Row], passes: dict[str, float], *, is_old: bool = False) -> None:
        """Insert rows that are not there yet, except those that would be deleted at once.

        Args:
            asked: The round.
            rows: The signals.
            passes: The passes of a signal by its `signal_key`, and under "" those of all others.
            is_old: Whether the rows are too old to be among the newest.
        """
        most = {part: self._most(asked.model, part) for part in Part}
        self._connection.executemany(
            "INSERT OR IGNORE INTO signal VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            (
                (
                    asked.model,
                    int(part),
                    key,
                    _place_of(row.recorded.stream_id),
                    priority,
                    row.root,
                    row.last,
                    row.by_pair,
                    passes.get(key, passes.get("", 0.0)),
                    event.SerializeToString(),
                )
                for row in rows
                for event in (row.recorded.event,)
                for key in (signal_key(event),)
                for part in (Part.OLD if is_old and row.side == "train" else _PART_OF[row.side],)
                for priority in (short_hash(f"{asked.model}\x1f{key}".encode()),)
                if priority < most[part]
            ),
        )

    def _most(self, model: str, part: Part) -> float:
        """Return the priority below which a new signal stays in a pool; infinity while the pool has room."""
        of_part = f"FROM signal WHERE model = ? AND part = {part:d}"
        (count,) = self._connection.execute(f"SELECT COUNT(*) {of_part}", (model,)).fetchone()
        if part == Part.RECENT or count < self._limits.size(part):
            return math.inf
        (most,) = self._connection.execute(f"SELECT MAX(priority) {of_part}", (model,)).fetchone()
        return -math.inf if most is None else float(most)

    def _trim(self, model: str) -> None:
        """Move the oldest of the newest training signals to the older ones, and delete what the pools do not hold."""
        self._over(model, Part.RECENT, f"UPDATE signal SET part = {Part.OLD:d} WHERE id IN", "place, id")
        for part in (Part.OLD, Part.HELDOUT, Part.JUDGE):
            self._over(model, part, "DELETE FROM signal WHERE id IN", "priority DESC, id")

    def _over(self, model: str, part: Part, change: str, first: str) -> None:
        of_part = f"FROM signal WHERE model = ? AND part = {part:d}"
        (count,) = self._connection.execute(f"SELECT COUNT(*) {of_part}", (model,)).fetchone()
        if (over := count - self._limits.size(part)) > 0:
            self._connection.execute(f"{change} (SELECT id {of_part} ORDER BY {first} LIMIT ?)", (model, over))

    def _drop_overtaken(self, model: str) -> None:
        """Delete the held-out signals whose last question has come into training by another conversation."""
        found = self._connection.execute(
            f"SELECT id, root, last, event FROM signal WHERE model = ? AND part = {Part.HELDOUT:d} AND root != last "
            "AND by_pair = 0",
            (model,),
        ).fetchall()
        for number, root, last, event in found:
            (record,) = from_event(feedback_pb2.FeedbackEvent.FromString(event))
            if not self._sides.still_apart(record.prompt, root, last):
                self._connection.execute("DELETE FROM signal WHERE id = ?", (number,))

    def _draw(self, asked: RoundRange) -> None:
        """Mark the old training signals of the round, and count their passes."""
        limits, chance = self._limits, random.Random(asked.seed)
        self._connection.execute("UPDATE signal SET is_drawn = 0 WHERE model = ? AND is_drawn = 1", (asked.model,))
        (new,) = self._connection.execute(
            "SELECT COUNT(*) FROM fresh WHERE model = ? AND side = ?", (asked.model, int(QuestionSide.TRAIN))
        ).fetchone()
        wanted = round(new * max(0.0, limits.passes / limits.epochs - 1))
        most = limits.passes * MOST_PASSES - limits.epochs
        left = [
            number
            for (number,) in self._connection.execute(
                f"SELECT id FROM signal WHERE model = ? AND part IN ({Part.RECENT:d}, {Part.OLD:d}) AND passes <= ?",
                (asked.model, most),
            )
        ]
        drawn = sorted(chance.sample(sorted(left), min(wanted, len(left))))
        self._connection.executemany(
            "UPDATE signal SET is_drawn = 1, passes = passes + ? WHERE id = ?",
            ((limits.epochs, number) for number in drawn),
        )

    def _note(self, ledger: Ledger, asked: RoundRange, begins: str) -> None:
        seen, changes = ledger.rows_through(asked.until), self._sides.changes
        row = (asked.model, begins, asked.after, asked.until, seen, changes)
        self._connection.execute("INSERT OR REPLACE INTO model VALUES (?, ?, ?, ?, ?, ?)", row)

    def _forget(self, ledger: Ledger, model: str) -> None:
        held: AbstractContextManager[None] = ledger.held()
        with self._database.step(held):
            for table, column in (("signal", "model"), ("fresh", "model"), ("model", "name")):
                self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (model,))


def _place_of(stream_id: str) -> int:
    """Return a number that orders signals as their stream ids do."""
    milliseconds, sequence = order(stream_id)
    return (milliseconds << 20) + min(sequence, 2**20 - 1)
