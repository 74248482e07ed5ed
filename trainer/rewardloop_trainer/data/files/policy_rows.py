"""Reads rows of a data file as prompts, and as pairs and thumbs if they hold judgements.

| row | gives |
| --- | --- |
| ``{prompt}``, text or a list of ``{role, content}`` | a prompt |
| ``{messages}`` and the other rows of `rewardloop_data.dialogue_rows` | the prompt of the last answer, or all turns |
| those of ``rewardloop feedback import`` | a prompt, and pairs or thumbs |

A row of ties alone prefers no response and gives its prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from rewardloop.v1 import feedback_pb2
from rewardloop_data.dialogue_rows import prompt_in_row
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import Reading, recognise_judged
from rewardloop_data.rows import Json, RowError, Turns, kind_of
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.pools.sides import split_at_once
from rewardloop_trainer.data.preferences import (
    Labelled,
    Pair,
    Prompt,
    Record,
    from_event,
    pairs_of,
    thumbs_of,
)
from rewardloop_trainer.data.split import Side
from rewardloop_trainer.data.weights.trust import Trust, weigh_people

log = structlog.get_logger()

_SHOWN = 10


class UnusableRows(Exception):
    """Raised when rows of a file cannot be used; the message has a line for each of the first ones."""


@dataclass(frozen=True, slots=True)
class PolicyData:
    """The contents of a file. ``prompts`` are distinct and in the file's order; ``sha256`` is of the file's rows."""

    prompts: tuple[Prompt, ...]
    pairs: tuple[Pair, ...]
    thumbs: tuple[Labelled, ...]
    sha256: str

    def split(self, heldout_share: float) -> tuple[PolicyData, PolicyData]:
        """Split into data to learn from and data to judge by; no question is in both, unless they are few.

        Rows that link one side to the other are left out, with a warning.
        """
        asked: list[tuple[Prompt, Record | None]] = [(record.prompt, record) for record in self._judged()]
        asked += [(prompt, None) for prompt in self.prompts]
        sides = split_at_once(asked, heldout_share)
        if left_out := sides.count(None):
            log.warning("rows that link held-out questions to others are left out", rows=left_out)
        pairs, judged = len(self.pairs), len(self.pairs) + len(self.thumbs)

        def of(side: Side) -> PolicyData:
            return PolicyData(
                tuple(each for each, its in zip(self.prompts, sides[judged:], strict=True) if its == side),
                tuple(each for each, its in zip(self.pairs, sides[:pairs], strict=True) if its == side),
                tuple(each for each, its in zip(self.thumbs, sides[pairs:judged], strict=True) if its == side),
                self.sha256,
            )

        return of("train"), of("heldout")

    def _judged(self) -> Iterator[Record]:
        yield from self.pairs
        yield from self.thumbs

    def weighed(self, trust: Trust) -> PolicyData:
        """Return the data with each judgement weighed by how far its person is trusted."""
        judged = weigh_people(list(self._judged()), trust)
        return replace(self, pairs=tuple(pairs_of(judged)), thumbs=tuple(thumbs_of(judged)))

    def records(self) -> Sequence[Record]:
        """All judgements, and for every other prompt an empty response that nobody approved, to hold the prompt."""
        judged = list(self._judged())
        seen = {record.prompt for record in judged}
        return [*judged, *(Labelled(prompt, "", 0.0) for prompt in self.prompts if prompt not in seen)]


def read_policy_data(
    source: SourceFile, on_event: Callable[[feedback_pb2.FeedbackEvent], None] = lambda event: None
) -> PolicyData:
    """Read all rows of a file.

    Args:
        source: The file.
        on_event: Called with each signal of the rows.

    Raises:
        UnusableRows: If any row cannot be used.
        UnreadableFile: If the file cannot be read.
    """
    prompts: dict[Prompt, None] = {}
    records: list[Record] = []
    digest = hashlib.sha256()
    problems: list[str] = []
    reading = recognise_judged(source.shown, source.lines(), Choices())
    for line in source.lines():
        try:
            prompt, judged, events = _row(line.value(), reading)
        except RowError as error:
            problems.append(f"{source.path}:{line.number}: {error}")
            continue
        digest.update(repr((prompt, [(p.chosen, p.rejected) for p in pairs_of(judged)])).encode())
        digest.update("".join(f"{t.label} {t.response!r}" for t in thumbs_of(judged)).encode())
        prompts[prompt] = None
        records += judged
        for event in events:
            on_event(event)
    if problems:
        more = [f"{len(problems)} rows are unusable"] if len(problems) > _SHOWN else []
        raise UnusableRows("\n".join([*problems[:_SHOWN], *more]))
    if not prompts:
        raise UnusableRows(f"{source.path}: has no row")
    return PolicyData(tuple(prompts), tuple(pairs_of(records)), tuple(thumbs_of(records)), digest.hexdigest())


def _row(row: Json, reading: Reading | None) -> tuple[Prompt, Sequence[Record], Sequence[feedback_pb2.FeedbackEvent]]:
    """Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    content: dict[str, Json] = {key: value for key, value in row.items() if value is not None}
    if reading is not None and reading.is_judged(content):
        events = list(reading.events(content, Labels()))
        records = [record for event in events for record in from_event(event)]
        if not records:
            raise RowError("compares a response with itself")
        return records[0].prompt, records, events
    return _prompt(prompt_in_row(content)), [], []


def _prompt(turns: Turns) -> Prompt:
    try:
        for turn in turns:
            turn.content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("holds text that is not valid Unicode (a lone surrogate)") from error
    return turns
