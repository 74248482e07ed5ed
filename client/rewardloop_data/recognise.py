"""Reads the shape of a whole file before any of its rows counts.

Every row is looked at first: which shape its keys have, which of its keys are not known, and what its values say about
the file. What may mean two things is refused with the flag that settles it, so that no row is read by a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rewardloop.v1 import feedback_pb2
from rewardloop_data.columns import placed
from rewardloop_data.judgements import Judgement, Labels, event_of, numbered
from rewardloop_data.rows import Json, RowError, kind_of, short
from rewardloop_data.shapes.shape import Choices, Row, Shape
from rewardloop_data.shapes.table import SHAPES, shape_named
from rewardloop_data.source_file import Line, UnreadableFile

_NAMED_KEYS = 8
# For the commands that have no flags for it.
_CONVERT = "'rewardloop feedback convert' takes these flags and writes a file that every command reads"
_REJECTED = {"line", "reason", "row"}  # of the file of rejected rows, which may be mended and imported

_OURS = Choices(indices="zero-based", rankings="order")


class UnclearFile(UnreadableFile):
    """Raised for a file whose rows have no shape that is known, or may mean two things. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a file are read.

    Attributes:
        shapes: The shapes that its rows may have.
        choices: What its reader has settled.
    """

    shapes: tuple[Shape, ...]
    choices: Choices = field(default_factory=Choices)

    def judgements(self, row: Json) -> list[Judgement]:
        """Return what a row says, at least one judgement. Raises RowError."""
        content = content_of(row, self.choices, self.shapes)
        shape = _shape(content, self.shapes, self.choices)
        if shape is None:
            raise RowError(_no_shape(content))
        if shape.read is not None and (unknown := shape.unknown(content, self.choices)):
            raise RowError(f"{unknown[0]}: is not known, and may change what the row says")
        return judgements_of(content, shape, self.choices)

    def is_judged(self, content: Row) -> bool:
        """Return whether a row without nulls has one of the shapes."""
        return _shape(content, self.shapes, self.choices) is not None

    def events(self, row: Json, labels: Labels) -> list[feedback_pb2.FeedbackEvent]:
        """Return the signals of a row. Raises RowError, and nothing else."""
        return [event_of(each, labels) for each in self.judgements(row)]


class Watcher(Protocol):
    """Is told of each row while the shapes are looked at."""

    def refuse(self, line: Line, reason: str) -> None:
        """The row has no shape."""

    def add(self, line: Line, content: Row, shape: Shape) -> None:
        """The row has a shape."""


def events_of(row: Json, labels: Labels) -> list[feedback_pb2.FeedbackEvent]:
    """Return the signals of one row in a shape of ours, whose indices count from 0 and whose ranking is an order.

    Raises:
        RowError: The row is no signal. No other exception is raised.
    """
    return Reading(SHAPES, _OURS).events(row, labels)


def content_of(row: Json, choices: Choices, shapes: Iterable[Shape] = SHAPES) -> dict[str, Json]:
    """Return the row without nulls, with its values where --column says. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    if row.keys() == _REJECTED and isinstance(row["row"], dict):
        row = row["row"]
    content: dict[str, Json] = {
        key: value for key, value in row.items() if value is not None
    }  # Parquet: an absent column is null
    if not choices.columns:
        return content
    asked = next((shape.asks for shape in shapes if shape.asks in choices.columns and shape.has(content)), "")
    columns = {key: path for key, path in choices.columns.items() if key != asked}
    return placed(content, columns) if columns else content


def recognise(name: str, lines: Iterable[Line], choices: Choices) -> Reading:
    """Look at all rows, and return how they are read.

    Args:
        name: What messages call the file.
        lines: All of its rows.
        choices: What the caller has settled.

    Raises:
        UnclearFile: No row has a shape that can be read, or it is not clear what the rows say.
        UnreadableFile: There is no row, or the file cannot be read.
    """
    try:
        return look(name, lines, choices)[0]
    except UnclearFile as error:
        raise UnclearFile(f"{error}; {_CONVERT}") from error


def recognise_judged(name: str, lines: Iterable[Line], choices: Choices) -> Reading | None:
    """As `recognise`, but return None for a file none of whose rows holds a judgement. Raises UnclearFile.

    A file that cannot be read is left to its reader.
    """
    found = _shapes_in(lines, choices, _shapes_of(choices))
    readable = {shape: seen for shape, seen in found.by_shape.items() if shape.read is not None}
    if not readable:
        return None
    try:
        _check(name, readable, choices)
    except UnclearFile as error:
        raise UnclearFile(f"{error}; {_CONVERT}") from error
    return Reading(tuple(readable), choices)


@dataclass(slots=True)
class _Seen:
    """The first line, the number, the marks and the unknown keys of the rows of one shape."""

    line: int
    rows: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Found:
    """The rows of a file by shape, why the first without one has none, and the error that ended the file."""

    by_shape: dict[Shape, _Seen] = field(default_factory=dict)
    rows: int = 0
    first_reason: str = ""
    broken: UnreadableFile | None = None


def _shapes_of(choices: Choices) -> tuple[Shape, ...]:
    if not choices.format:
        return SHAPES
    named = shape_named(choices.format)
    if named is None:
        known = ", ".join(shape.name for shape in SHAPES)
        raise UnclearFile(f"--format {choices.format}: is not one of {known}")
    return (named,)


def _shapes_in(
    lines: Iterable[Line], choices: Choices, shapes: tuple[Shape, ...], watcher: Watcher | None = None
) -> _Found:
    found = _Found()
    try:
        for line in lines:
            found.rows += 1
            try:
                content = content_of(line.value(), choices, shapes)
            except RowError as error:
                found.first_reason = found.first_reason or f"{line.number}: {error}"
                if watcher is not None:
                    watcher.refuse(line, str(error))
                continue
            shape = _shape(content, shapes, choices)
            if shape is None:
                found.first_reason = found.first_reason or f"{line.number}: {_no_shape(content)}"
                if watcher is not None:
                    watcher.refuse(line, _no_shape(content))
                continue
            seen = found.by_shape.setdefault(shape, _Seen(line.number))
            seen.rows += 1
            for key in shape.unknown(content, choices):
                seen.unknown.setdefault(key, f"{line.number}: {key} is {short(content[key])}")
            seen.marks.update(shape.marks(content))
            if watcher is not None:
                watcher.add(line, content, shape)
    except UnreadableFile as error:
        found.broken = error
    return found


def look(
    name: str, lines: Iterable[Line], choices: Choices, watcher: Watcher | None = None
) -> tuple[Reading, UnreadableFile | None]:
    """As `recognise`, and return why the file cannot be read to its end. ``watcher`` is told of each row."""
    found = _shapes_in(lines, choices, _shapes_of(choices), watcher)
    if not found.rows:
        raise found.broken or UnreadableFile(f"{name}: has no rows")
    if not found.by_shape:
        raise UnclearFile(
            f"{name}: no row has a known shape ({found.first_reason}); 'rewardloop feedback shapes' lists them"
        )
    readable = {shape: seen for shape, seen in found.by_shape.items() if shape.read is not None}
    if not readable:
        shape, seen = next(iter(found.by_shape.items()))
        raise UnclearFile(f"{name}:{seen.line}: {shape.name}: {shape.way}")
    _check(name, readable, choices)
    unread = (shape for shape in found.by_shape if shape not in readable)
    return Reading((*readable, *unread), choices), found.broken


def _check(name: str, readable: Mapping[Shape, _Seen], choices: Choices) -> None:
    """Raise UnclearFile if the shapes do not belong together, or leave something open."""
    if len(readable) > 1 and not all(shape.is_own for shape in readable):
        each = ", ".join(f"{shape.name} (line {seen.line})" for shape, seen in readable.items())
        raise UnclearFile(
            f"{name}: its rows have different shapes: {each}: split it, or say --format NAME for one of them"
        )
    unknown = {key: text for seen in readable.values() for key, text in seen.unknown.items()}
    if unknown:
        shown = "; ".join(list(unknown.values())[:_NAMED_KEYS])
        keys = ",".join(unknown)
        raise UnclearFile(
            f"{name}:{shown}: not known, and may change what a row says: say --ignore {keys} if it does not, or "
            f"--column KEY={next(iter(unknown))} with the key that it is, such as system"
        )
    for shape, seen in readable.items():
        if question := shape.doubt(seen.marks, choices):
            raise UnclearFile(f"{name}: {shape.name}: {question}")


def judgements_of(content: Row, shape: Shape, choices: Choices) -> list[Judgement]:
    """Return what a row of a shape says, at least one judgement. Raises RowError."""
    if shape.read is None:
        raise RowError(shape.way)
    found = numbered(shape.read(content, choices))
    if not found:
        raise RowError("holds no signal")
    return found


def _shape(content: Row, shapes: Iterable[Shape], choices: Choices) -> Shape | None:
    if choices.format:  # what the caller names is not doubted
        return next((shape for shape in shapes if all(key in content for key in shape.needs)), None)
    return next((shape for shape in shapes if not shape.is_by_name and shape.has(content)), None)


def _no_shape(content: Row) -> str:
    return f"has no known shape: its keys are {', '.join(sorted(content)[:_NAMED_KEYS]) or 'none'}"
