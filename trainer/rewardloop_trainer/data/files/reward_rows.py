"""Reads rows of a data file as preference signals: those of ``rewardloop feedback import``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from rewardloop.v1 import feedback_pb2
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import recognise
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.files.policy_rows import UnusableRows
from rewardloop_trainer.data.pools.sides import split_at_once
from rewardloop_trainer.data.preferences import Record, from_event

log = structlog.get_logger()

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class RewardData:
    """The signals of a file, in its order; ``sha256`` is of their contents."""

    records: tuple[Record, ...]
    sha256: str

    def split(self, heldout_share: float) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
        """Split into records to learn from and records to judge by; no question is in both, unless they are few.

        Records that link one side to the other are left out, with a warning.
        """
        sides = split_at_once([(record.prompt, record) for record in self.records], heldout_share)
        if left_out := sides.count(None):
            log.warning("signals that link held-out questions to others are left out", signals=left_out)
        train, heldout = (
            tuple(record for record, side in zip(self.records, sides, strict=True) if side == wanted)
            for wanted in ("train", "heldout")
        )
        return train, heldout


def read_reward_data(
    source: SourceFile, on_event: Callable[[feedback_pb2.FeedbackEvent], None] = lambda event: None
) -> RewardData:
    """Read all rows of a file. Signals that compare equal texts are left out.

    Args:
        source: The file.
        on_event: Called with each signal of the rows.

    Raises:
        UnusableRows: If any row cannot be used, or the file has no signal.
        UnreadableFile: If the file cannot be read.
    """
    records: list[Record] = []
    problems: list[str] = []
    digest = hashlib.sha256()
    reading = recognise(source.shown, source.lines(), Choices())
    for line in source.lines():
        try:
            events = list(reading.events(line.value(), Labels()))
            found = [record for event in events for record in from_event(event)]
        except RowError as error:
            problems.append(f"{source.path}:{line.number}: {error}")
            continue
        for record in found:
            digest.update(repr(record).encode())
        records += found
        for event in events:
            on_event(event)
    if problems:
        more = [f"{len(problems)} rows are unusable"] if len(problems) > _SHOWN else []
        raise UnusableRows("\n".join([*problems[:_SHOWN], *more]))
    if not records:
        raise UnusableRows(f"{source.path}: has no signal that compares different texts or judges one")
    return RewardData(tuple(records), digest.hexdigest())
