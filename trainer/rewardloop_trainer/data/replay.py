"""The data set of a round: its new signals, old ones drawn beside them, and held-out ones to judge by."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from rewardloop.formats.signals import aspect_of, signal_key
from rewardloop.formats.text import Encoder
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.overlap import Overlap, measure_overlap
from rewardloop_trainer.data.pools.database import forget_all, is_damage, put_aside
from rewardloop_trainer.data.pools.pools import Part, PoolLimits, Pools, RoundRange
from rewardloop_trainer.data.preferences import Record, from_event

log = structlog.get_logger()

POOLS = "pools.sqlite"


@dataclass(frozen=True, slots=True)
class Replay:
    """The records of a round. No question of a held-out record is in training, unless ``is_by_pair``.

    Attributes:
        new: Training records that no earlier round has learned, in stream order.
        replayed: Old training records, drawn among those that have passes left, in stream order.
        heldout: Held-out records, of all rounds so far, in stream order.
        counts: New signals by kind (choice, ranking, ...).
        identical: New signals without a record, because they compare equal texts.
        left_out: New records that tie two sides to each other, and those that the model cannot read.
        is_by_pair: Whether there are so few questions that signals about the same one are on both sides.
        overlap: What of ``heldout`` is in ``train``, as measured.
    """

    new: tuple[Record, ...]
    replayed: tuple[Record, ...]
    heldout: tuple[Record, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    identical: int = 0
    left_out: int = 0
    is_by_pair: bool = False
    overlap: Overlap = field(default_factory=Overlap)

    @property
    def train(self) -> tuple[Record, ...]:
        """The records of a round that goes on from the live weights: the old ones that were drawn, and the new ones."""
        return (*self.replayed, *self.new)

    @property
    def figures(self) -> Mapping[str, float]:
        """What the manifest says of the data."""
        return {
            "data_new": float(len(self.new)),
            "data_replayed": float(len(self.replayed)),
            "data_heldout": float(len(self.heldout)),
            "data_left_out": float(self.left_out),
            "heldout_by_pair": float(self.is_by_pair),
            **self.overlap.figures(),
        }

    def mapped(self, change: Callable[[Sequence[Record]], tuple[Record, ...]]) -> Replay:
        """Return the same data set with its records changed by ``change``, which is given each part in turn."""
        return replace(self, new=change(self.new), replayed=change(self.replayed), heldout=change(self.heldout))

    def readable(self, encoder: Encoder) -> Replay:
        """Return the records for whose conversation a model's text format has a form."""
        new, replayed, heldout = (readable(part, encoder) for part in (self.new, self.replayed, self.heldout))
        unread = sum(map(len, (self.new, self.replayed, self.heldout))) - sum(map(len, (new, replayed, heldout)))
        if unread:
            log.warning("the model's text format has no form for some conversations", left_out=unread)
        return replace(self, new=new, replayed=replayed, heldout=heldout, left_out=self.left_out + unread)


def load_replay(ledger: Ledger, path: Path | None, asked: RoundRange, limits: PoolLimits) -> Replay:
    """Read the data set of a round. The same round has the same data set, also in another process.

    The ledger is read from the last round's signals on. Without the file of the pools it is read from its beginning.

    Args:
        ledger: The ledger.
        path: The file of the pools, which is made if it is absent; None keeps the pools in memory.
        asked: The signals of the round.
        limits: The bounds of the pools.

    Raises:
        CorruptSegment: If a segment of the ledger cannot be read.
        Fenced: If another trainer leads.
    """
    try:
        replay = _load(ledger, path, asked, limits)
    except sqlite3.DatabaseError as error:
        if path is None or not is_damage(error):
            raise
        put_aside(path, error)
        replay = _load(ledger, path, asked, limits)
    return replace(replay, overlap=measure_overlap(replay.train, replay.heldout))


def _load(ledger: Ledger, path: Path | None, asked: RoundRange, limits: PoolLimits) -> Replay:
    if path is not None:
        forget_retracted(path, ledger)
    with Pools(path, limits) as pools:
        pools.prepare(ledger, asked)
        counts: Counter[str] = Counter()
        new: list[Record] = []
        identical = left_out = 0
        sides = pools.fresh(asked.model)
        after, until = pools.range(asked.model)
        for row in ledger.scan(after or None, until):
            if aspect_of(row.event) != asked.aspect:
                continue
            counts[str(row.event.WhichOneof("signal"))] += 1
            records = from_event(row.event)
            identical += not records
            side = sides.get(signal_key(row.event))
            left_out += len(records) if side is None else 0
            new += records if side == "train" else []
        replayed = _records(pools.drawn(asked.model))
        events, is_by_pair = pools.apart(asked.model, Part.HELDOUT)
    heldout = _records(events)
    return Replay(tuple(new), replayed, heldout, dict(counts), identical, left_out, is_by_pair and bool(heldout))


def forget_retracted(path: Path, ledger: Ledger) -> None:
    """Empty the pools if an import was taken out of the ledger since they were read, so that they are read again."""
    if forget_all(path, ledger.retractions, ledger.held()):
        log.info("an import was taken back: reading the pools from the ledger again")


def load_trained(path: Path, model: str, limits: PoolLimits) -> tuple[Record, ...]:
    """Return every training record that is kept of earlier rounds, in stream order.

    With `Replay.new` they are what a start from the base learns from: the newest records, and a uniform sample of the
    older ones.
    """
    with Pools(path, limits) as pools:
        return _records(pools.trained(model))


def load_judged(path: Path, model: str, limits: PoolLimits) -> tuple[Record, ...]:
    """Return the records that only an independent judge is trained on, in stream order."""
    with Pools(path, limits) as pools:
        return _records(pools.apart(model, Part.JUDGE)[0])


def load_heldout(path: Path, model: str, limits: PoolLimits) -> tuple[Record, ...]:
    """Return the records that no round has learned from, in stream order."""
    with Pools(path, limits) as pools:
        return _records(pools.apart(model, Part.HELDOUT)[0])


def readable(records: Iterable[Record], encoder: Encoder) -> tuple[Record, ...]:
    """Return the records for whose conversation a model's text format has a form."""
    records = tuple(records)
    prompts = list(dict.fromkeys(record.prompt for record in records))
    is_read = dict(zip(prompts, encoder.reads(prompts), strict=True))
    return tuple(record for record in records if is_read[record.prompt])


def _records(events: Iterable[feedback_pb2.FeedbackEvent]) -> tuple[Record, ...]:
    return tuple(record for event in events for record in from_event(event))
