"""Counts what a whole file says while its shape is looked at, with examples, before any of it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rewardloop_data.judgements import Judgement, digest_of
from rewardloop_data.recognise import Reading, judgements_of, look
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices, Row, Shape
from rewardloop_data.source_file import Line, UnreadableFile

_EXAMPLES = 3
_MOST_DIGESTS = 4_000_000  # of which 8 bytes each are kept


@dataclass(slots=True)
class Survey:
    """What was found in a file.

    Attributes:
        reading: How its rows are read.
        rows: Its rows.
        signals: Its judgements by kind, those that repeat an earlier one included.
        refused: Rows that hold no judgement.
        reasons: The first reasons for that, with their lines.
        repeats: Judgements of nobody by name that are equal to an earlier one.
        examples: The first judgements.
        broken: Why the file cannot be read to its end; None if it can.
    """

    reading: Reading
    rows: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    repeats: int = 0
    examples: list[Judgement] = field(default_factory=list)
    broken: UnreadableFile | None = None


def survey(name: str, lines: Iterable[Line], choices: Choices, aspect: str = "") -> Survey:
    """Look at all rows, for their shape and for what they say.

    Args:
        name: What messages call the file.
        lines: All of its rows.
        choices: What the caller has settled.
        aspect: The reward model that learns from rows that name none.

    Raises:
        UnclearFile, UnreadableFile: As `recognise` does.
    """
    tally = _Tally(choices, aspect)
    reading, broken = look(name, lines, choices, tally)
    return Survey(
        *(reading, tally.rows, tally.signals, tally.refused, tally.reasons, tally.repeats, tally.examples, broken)
    )


@dataclass(slots=True)
class _Tally:
    """What rows say, counted while their shapes are looked at. It holds if the look finds nothing in doubt."""

    choices: Choices
    aspect: str
    rows: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    repeats: int = 0
    examples: list[Judgement] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def refuse(self, line: Line, reason: str) -> None:
        self.rows += 1
        self.refused += 1
        if len(self.reasons) < _EXAMPLES:
            self.reasons.append(f"{line.number}: {reason}")

    def add(self, line: Line, content: Row, shape: Shape) -> None:
        try:
            judgements = judgements_of(content, shape, self.choices)
            digests = [digest_of(each, self.aspect) for each in judgements]
        except RowError as error:
            self.refuse(line, str(error))
            return
        self.rows += 1
        self.signals.update(type(each.said).__name__ for each in judgements)
        self.examples += judgements[: max(0, _EXAMPLES - len(self.examples))]
        for each, digest in zip(judgements, digests, strict=True):
            if not (each.annotator or each.key) and len(self.seen) < _MOST_DIGESTS:
                number = int(digest[:16], 16)
                self.repeats += number in self.seen
                self.seen.add(number)


class Copies:
    """Counts equal judgements of nobody by name, so that each of them is a signal of its own."""

    def __init__(self, aspect: str) -> None:
        self._aspect = aspect
        self._seen: Counter[str] = Counter()

    def numbered(self, judgements: Iterable[Judgement]) -> list[Judgement]:
        """Return the judgements, each with the number of those that were equal to it before. Raises RowError."""
        found = []
        for each in judgements:
            if each.annotator or each.key:
                found.append(each)
                continue
            digest = digest_of(replace(each, copy=0), self._aspect)[:24]
            found.append(replace(each, copy=self._seen[digest]))
            self._seen[digest] += 1
        return found
