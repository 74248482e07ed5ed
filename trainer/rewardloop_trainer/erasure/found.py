"""The signals that erasures cover: found in the ledger and in the stream, told from those that stay."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rewardloop.formats.erasing.erasures import Erasure, Erasures
from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.signals import aspect_of
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger, Segment

_COLUMNS = [
    *("stream_id", "event_id", "caller", "annotator_id", "generation_id", "source", "aspect", "arrival_time"),
]


@dataclass(frozen=True, slots=True)
class Found:
    """A signal that is erased, before it is.

    Attributes:
        stream_id: Its place in the ledger or the stream.
        event_id: Its id.
        caller: The caller that sent it; "" for none.
        annotator_id: Who judged; "" if nobody is named.
        generation_id: The generation that it is about; "" for none.
        source: The number of its source.
        aspect: The reward model that learns from it.
        erasures: The erasures that cover it. None, if it came again under an event_id that was erased.
    """

    stream_id: str
    event_id: str
    caller: str
    annotator_id: str
    generation_id: str
    source: int
    aspect: str
    erasures: tuple[Erasure, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a segment that are erased, and which of its rows stay."""

    segment: Segment
    found: tuple[Found, ...]
    stays: tuple[bool, ...]


def in_ledger(ledger: Ledger, erasures: Erasures) -> Iterator[Part]:
    """Yield the parts of the ledger that have rows to erase. A segment's ids are read at a time, and no text."""
    for segment, table in ledger.each_segment(_COLUMNS):
        found, stays = [], []
        for row in _rows(table):
            covering = erasures.of_ids(row.annotator_id, row.generation_id, row.caller, row.arrived)
            is_gone = bool(covering) or erasures.is_erased_event(row.event_id, row.caller)
            stays.append(not is_gone)
            if is_gone:
                found.append(
                    Found(
                        *(row.stream_id, row.event_id, row.caller, row.annotator_id, row.generation_id),
                        *(row.source, row.aspect, covering),
                    )
                )
        if found:
            yield Part(segment, tuple(found), tuple(stays))


def of_event(stream_id: str, event: feedback_pb2.FeedbackEvent, erasures: Erasures) -> Found | None:
    """Return a signal of the stream if it is erased."""
    if not erasures.is_erased(event):
        return None
    who = event.event_id, event.caller, event.annotator_id, event.generation_id
    return Found(stream_id, *who, event.source, aspect_of(event), erasures.of(event))


def generations_of(ledger: Ledger, found: Collection[Found]) -> set[str]:
    """Return the generations that only erased signals are about. Texts that other people judged are theirs, too."""
    erased = {each.stream_id for each in found}
    named = {each.generation_id for each in found} - {""}
    asked_for = {each.generation_id for each in found if any(erasure.kind == "generation" for erasure in each.erasures)}
    if named - asked_for:
        for _, table in ledger.each_segment(["stream_id", "generation_id"]):
            for stream_id, generation_id in zip(*(table.column(i).to_pylist() for i in (0, 1)), strict=True):
                if generation_id in named and stream_id not in erased:
                    named.discard(generation_id)
    return named | asked_for


@dataclass(frozen=True, slots=True)
class _Row:
    stream_id: str
    event_id: str
    caller: str
    annotator_id: str
    generation_id: str
    source: int
    aspect: str
    arrived: float


def _rows(table: pa.Table) -> Iterator[_Row]:
    columns: list[list[Any]] = [
        table.column(name).cast(pa.int64()).to_pylist() if name == "arrival_time" else table.column(name).to_pylist()
        for name in _COLUMNS
    ]
    for stream_id, event_id, caller, annotator, generation, source, aspect, arrived in zip(*columns, strict=True):
        number = feedback_pb2.Source.Value(f"SOURCE_{source.upper()}")
        who = event_id, caller or "", annotator or "", generation or ""
        yield _Row(stream_id, *who, number, aspect or REWARD, arrived / 1e6)
