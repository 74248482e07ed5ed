"""What a report is made of. All of it is plain data, so that the page and the JSON file are made from the same values.

A command builds a `Report` from sections, and `page.write_report` writes it:

    report = Report(
        "Reward 4 against reward 3",
        lead="The candidate agrees with people more often than the live version.",
        facts={"held-out signals": 943},
        figures={"accuracy": 0.612},
        sections=[Section("all", "Agreement", [Table("agreement", ("model", "accuracy"), [("reward 4", found)])])],
    )
    write_report(report, Path("out"))     # out/report.html, out/report.json

Names identify a section, a table, a plot and a block of samples in the JSON file: lower-case letters, digits, "-" and
"_". Every text may hold anything, for it is escaped wherever it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with the bounds of its interval; 95% unless the text beside it says otherwise."""

    value: float
    lower: float
    upper: float


# None and NaN are shown as a dash, and are null in the JSON file.
Cell: TypeAlias = "str | bool | int | float | Measured | None"


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a section. The contents list it below the section."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A text. ``tone`` colours its margin: "good" and "bad" for verdicts, "note" for what a reader must know."""

    text: str
    tone: Literal["plain", "note", "good", "bad"] = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: Identifies it in the JSON file.
        columns: The titles of the columns.
        rows: As many cells each as there are columns.
        title: Is shown above it.
        note: Is shown below it.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name}: a row has another number of cells than {len(self.columns)}")


@dataclass(frozen=True, slots=True)
class Curve:
    """A series of a plot.

    Attributes:
        title: Names it in the legend.
        x: (n,).
        y: (n,).
        lower: (n,), lower bounds of ``y``; empty: none are drawn.
        upper: (n,), upper bounds of ``y``; empty: none are drawn.
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    lower: Sequence[float] = ()
    upper: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Curves:
    """A plot of curves.

    Attributes:
        name: Identifies it in the JSON file.
        title: Is shown above it.
        x_label: Says what the horizontal axis measures, with its unit.
        y_label: Says what the vertical axis measures, with its unit.
        curves: At most four.
        diagonal: Whether to draw the line y = x, as in a reliability plot.
        note: Is shown below it.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    diagonal: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Intervals:
    """A plot with a row for each label: a point with its interval.

    Attributes:
        name: Identifies it in the JSON file.
        title: Is shown above it.
        x_label: Says what is measured, with its unit.
        rows: The label and the figure of each row, from the top.
        reference: Where a dashed vertical line is drawn, such as 1/2 for chance; None: nowhere.
        note: Is shown below it.
    """

    name: str
    title: str
    x_label: str
    rows: Sequence[tuple[str, Measured]]
    reference: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the texts that a sample shows side by side, with figures of its own such as its score."""

    title: str
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with the texts that answer it.

    Attributes:
        prompt: The prompt as text; see `conversation_text` for chats.
        sides: The texts to compare.
        figures: What the reader may sort the samples by, such as the difference of the sides' scores.
        marks: Short words that are shown beside the prompt, such as its tags or "refused".
        signal: The signal that it comes from (`formats.signals.signal_key`), which is not shown; "" if it is from none.
    """

    prompt: str
    sides: Sequence[Side]
    figures: Mapping[str, float] = field(default_factory=dict)
    marks: Sequence[str] = ()
    signal: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples that the reader can search and sort by their figures.

    Attributes:
        name: Identifies them in the JSON file.
        samples: In the order in which they are shown first.
        title: Is shown above them.
        note: Is shown above them, such as how many there are of how many.
    """

    name: str
    samples: Sequence[Sample]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)

    @property
    def sorted_by(self) -> tuple[str, ...]:
        """The figures that the samples have, in the order in which they come."""
        return tuple(dict.fromkeys(name for sample in self.samples for name in sample.figures))


Part: TypeAlias = Heading | Paragraph | Table | Curves | Intervals | Samples


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a report. The contents list it."""

    name: str
    title: str
    parts: Sequence[Part]

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        title: What it is about, in one line.
        lead: What it found, in one or two sentences.
        facts: What was measured and how: models, files, numbers of signals, settings.
        figures: The figures that other programs read, by name.
        sections: Its sections.
    """

    title: str
    lead: str = ""
    facts: Mapping[str, Cell] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        names = [section.name for section in self.sections]
        if len(set(names)) != len(names):
            raise ValueError("two sections of a report have the same name")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a part: it has lower-case letters, digits, '-' and '_'")
