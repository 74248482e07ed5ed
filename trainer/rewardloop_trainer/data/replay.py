"""The data set of a round: the ledger's signals as records, split by prompt, with old ones replayed beside new ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from rewardloop.formats.text import Encoder
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.preferences import Prompt, Record, Split, from_event, split_of

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Replay:
    """The records of a round.

    Attributes:
        train: Records of training prompts, in stream order.
        heldout: Records of held-out prompts, in stream order; no prompt is in both.
        counts: Signals read, by kind (choice, ranking, ...), before sampling.
        identical: Signals without a record, because they compare equal texts.
        left_out: Records that sampling left out, or that the model cannot read.
    """

    train: tuple[Record, ...]
    heldout: tuple[Record, ...]
    counts: Mapping[str, int]
    identical: int
    left_out: int

    def readable(self, encoder: Encoder) -> Replay:
        """Return the records for whose conversation a model's text format has a form."""
        prompts = list(dict.fromkeys(record.prompt for record in (*self.train, *self.heldout)))
        is_read = dict(zip(prompts, encoder.reads(prompts), strict=True))
        if all(is_read.values()):
            return self
        train, heldout = (tuple(r for r in records if is_read[r.prompt]) for records in (self.train, self.heldout))
        unread = len(self.train) + len(self.heldout) - len(train) - len(heldout)
        log.warning("the model's text format has no form for some conversations", left_out=unread)
        return replace(self, train=train, heldout=heldout, left_out=self.left_out + unread)


def load_replay(
    ledger: Ledger,
    until_stream_id: str,
    *,
    heldout_share: float = 0.1,
    newest: int | None = None,
    replayed: int = 0,
    max_heldout: int | None = None,
    seed: int = 0,
) -> Replay:
    """Read the ledger up to ``until_stream_id``. The same arguments give the same data set.

    Args:
        ledger: The ledger.
        until_stream_id: Stream id of the last signal to read.
        heldout_share: Share of prompts that are held out, from 0 to 1.
        newest: How many of the latest training records are kept; None: all.
        replayed: How many of the older training records are drawn uniformly.
        max_heldout: Most held-out records, drawn uniformly; None: all.
        seed: The seed of the sampling.
    """
    sides: dict[Split, list[Record]] = {"train": [], "heldout": []}
    side_of: dict[Prompt, Split] = {}
    counts: Counter[str] = Counter()
    identical = 0
    for row in ledger.scan(until_stream_id=until_stream_id):
        counts[str(row.event.WhichOneof("signal"))] += 1
        records = from_event(row.event)
        identical += not records
        for record in records:
            if (side := side_of.get(record.prompt)) is None:
                side = side_of[record.prompt] = split_of(record.prompt, heldout_share)
            sides[side].append(record)

    chance = random.Random(seed)
    train, heldout = sides["train"], sides["heldout"]
    total = len(train) + len(heldout)
    if newest is not None and len(train) > newest:
        split_at = len(train) - newest
        train = [*_sample(train[:split_at], replayed, chance), *train[split_at:]]
    if max_heldout is not None:
        heldout = _sample(heldout, max_heldout, chance)
    return Replay(tuple(train), tuple(heldout), dict(counts), identical, total - len(train) - len(heldout))


def _sample(items: Sequence[T], size: int, chance: random.Random) -> list[T]:
    """A uniform sample without replacement, in the order of the items."""
    if len(items) <= size:
        return list(items)
    return [items[i] for i in sorted(chance.sample(range(len(items)), size))]
