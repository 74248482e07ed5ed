"""The side of every signal, which never changes: by conversation, by question and by near-duplicate.

The first signal about a question decides its side, by `split.side_of`; a question that is a near-duplicate of a known
one takes that one's side. From then on:

- The root of a conversation decides for all of its signals.
- A later question that is new, or on the root's side, joins it. A follow-up question that comes up in conversations of
  several sides, such as "tell me more", is in training from its first conversation of training on, and the signals
  about it that were held out are dropped.
- A signal that ties a conversation to another side in any other way is left out of both. No text that was held out is
  trained on, and no text that was trained on is held out.
- The first `FEW` questions are split pair by pair, so that a product with a handful of prompts has evidence at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from rewardloop_trainer.data.pools.database import Database
from rewardloop_trainer.data.pools.near_duplicates import Sketch, short_hash, sketch_of
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt, RankedList, Record
from rewardloop_trainer.data.split import Side, keys_of, normalised, side_of

FEW = 20
_MOST_IN_BAND = 32  # questions that a lookup compares for a band; more of them are variants of one template


class QuestionSide(IntEnum):
    """The side of a question; the numbers are stored. ``BY_PAIR`` splits its signals by their responses."""

    LEFT_OUT = 0
    TRAIN = 1
    JUDGE = 2
    HELDOUT = 3
    BY_PAIR = 4


_BY_NAME = {"train": QuestionSide.TRAIN, "judge": QuestionSide.JUDGE, "heldout": QuestionSide.HELDOUT}
_LEARNED = frozenset({QuestionSide.TRAIN, QuestionSide.BY_PAIR})  # questions that training sees
_NAMES: dict[int, Side] = {int(side): name for name, side in _BY_NAME.items()}  # type: ignore[misc]
Near: TypeAlias = frozenset[QuestionSide]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a signal belongs.

    Attributes:
        side: None if it is left out, because it ties two sides to each other.
        by_pair: Whether its question is split by pair.
        root: Hash of its conversation's root.
        last: Hash of its last question.
    """

    side: Side | None
    by_pair: bool
    root: int
    last: int


class Sides:
    """Decides and remembers sides in a database. Signals have to come in the stream's order.

    Args:
        connection: The database, in a transaction whenever `place` is called.
        heldout_share: Share of new questions that are held out; those that are known stay where they are.
        judge_share: Share of new questions that only a judge is trained on.
        few: How many questions are split by pair.
    """

    def __init__(
        self, connection: sqlite3.Connection, heldout_share: float, judge_share: float, few: int = FEW
    ) -> None:
        self._connection = connection
        self._heldout_share, self._judge_share = heldout_share, judge_share
        self._few = few
        self.groups = self._fact("groups")
        self.changes = self._fact("changes")

    def place(self, prompt: Prompt, record: Record | None = None) -> Placed:
        """Return where a signal belongs. ``record`` is looked at if its question is split by pair; without a record
        such a question is on the side of its own text."""
        keys = keys_of(prompt)
        root = hash_of(keys.root)
        last = root if keys.last == keys.root else hash_of(keys.last)
        side = self._root_side(keys.root, root)
        if last != root:
            side = self._with_question(keys.last, last, side)
        if side == QuestionSide.BY_PAIR:
            return Placed(self._chance(_pair_text(keys.root, keys.last, record), "pair"), True, root, last)
        return Placed(_NAMES.get(side), False, root, last)

    def still_apart(self, prompt: Prompt, root: int, last: int) -> bool:
        """Whether no text of a held-out prompt is a near-duplicate of one that has come into training since."""
        keys = keys_of(prompt)
        for text, key in {keys.root: root, keys.last: last}.items():
            sides = {self._side_of(key)} | self._near(sketch_of(text))
            if QuestionSide.TRAIN in sides:
                return False
        return True

    def keep(self) -> None:
        """Write the counts down, in the transaction that `place` was called in."""
        for name, value in (("groups", self.groups), ("changes", self.changes)):
            self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, str(value)))

    def _root_side(self, text: str, key: int) -> QuestionSide:
        row = self._connection.execute("SELECT side, is_root FROM question WHERE key = ?", (key,)).fetchone()
        if row is not None:
            if not row[1]:
                self._connection.execute("UPDATE question SET is_root = 1 WHERE key = ?", (key,))
            return QuestionSide(row[0])
        sketch = sketch_of(text)
        near = self._near(sketch)
        if not near:
            self.groups += 1
            is_few = self.groups <= self._few
            side = QuestionSide.BY_PAIR if is_few else _BY_NAME[self._chance(text)]
        elif near <= _LEARNED:
            side = min(near)
        else:
            side = next(iter(near)) if len(near) == 1 else QuestionSide.LEFT_OUT
        self._add(key, side, sketch, is_root=True)
        return side

    def _with_question(self, text: str, key: int, root_side: QuestionSide) -> QuestionSide:
        """Return the side of a signal about a later question of a conversation whose root is on ``root_side``."""
        row = self._connection.execute("SELECT side, is_root FROM question WHERE key = ?", (key,)).fetchone()
        if root_side == QuestionSide.LEFT_OUT:
            return root_side
        if row is None:
            sketch = sketch_of(text)
            sides = self._near(sketch) | {root_side}
            side = root_side if len(sides) == 1 or sides <= _LEARNED else QuestionSide.LEFT_OUT
            self._add(key, side, sketch, is_root=False)
            return side
        side = QuestionSide(row[0])
        if {side, root_side} <= _LEARNED:
            return root_side
        if side != root_side and root_side == QuestionSide.TRAIN and not row[1] and side != QuestionSide.LEFT_OUT:
            self._connection.execute("UPDATE question SET side = ? WHERE key = ?", (int(QuestionSide.TRAIN), key))
            self.changes += 1
            return root_side
        return root_side if side == root_side else QuestionSide.LEFT_OUT

    def _add(self, key: int, side: QuestionSide, sketch: Sketch, *, is_root: bool) -> None:
        self._connection.execute("INSERT INTO question VALUES (?, ?, ?, ?)", (key, int(side), is_root, sketch.low))
        if side != QuestionSide.LEFT_OUT:
            self._connection.executemany(
                "INSERT INTO band SELECT ?1, ?2 WHERE (SELECT COUNT(*) FROM band WHERE hash = ?1) < ?3",
                ((band, key, _MOST_IN_BAND) for band in sketch.bands),
            )

    def _near(self, sketch: Sketch) -> Near:
        """Return the sides of the near-duplicates that are known."""
        marks = ",".join("?" * len(sketch.bands))
        found = self._connection.execute(
            f"SELECT side, low FROM question WHERE key IN (SELECT key FROM band WHERE hash IN ({marks}))", sketch.bands
        )
        return frozenset(QuestionSide(side) for side, low in found if side and sketch.is_near(low))

    def _side_of(self, key: int) -> QuestionSide:
        row = self._connection.execute("SELECT side FROM question WHERE key = ?", (key,)).fetchone()
        return QuestionSide.LEFT_OUT if row is None else QuestionSide(row[0])

    def _chance(self, text: str, salt: str = "") -> Side:
        return side_of(text, heldout_share=self._heldout_share, judge_share=self._judge_share, salt=salt)

    def _fact(self, name: str) -> int:
        row = self._connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])


def split_at_once(asked: Iterable[tuple[Prompt, Record | None]], heldout_share: float) -> list[Side | None]:
    """Return the side of each item of a file, None for those that tie two sides to each other.

    The items are split pair by pair if they are about fewer than `FEW` questions in all.
    """
    asked = list(asked)
    for few in (0, len(asked)):
        sides = Sides(Database(None).connection, heldout_share, 0.0, few)
        found = [sides.place(prompt, record).side for prompt, record in asked]
        if sides.groups >= FEW:
            break
    return found


def hash_of(text: str) -> int:
    """Return the key of a normalised text in the database."""
    return short_hash(text.encode())


def _pair_text(root: str, last: str, record: Record | None) -> str:
    """Return the text by which a signal about a question that is split by pair is split: the same for the same
    responses in any order."""
    match record:
        case None:
            responses: tuple[str, ...] = ()
        case Pair():
            responses = (record.chosen, record.rejected)
        case RankedList():
            responses = record.responses
        case Labelled():
            responses = (record.response,)
        case _:
            responses = (record.first, record.second)
    return "\x1e".join((root, last, *sorted(normalised(response) for response in responses)))
