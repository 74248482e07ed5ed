"""The values of a report as texts of the page and as values of the JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rewardloop_trainer.reports.parts import (
    Cell,
    Curves,
    Heading,
    Intervals,
    Measured,
    Paragraph,
    Part,
    Report,
    Samples,
    Table,
)

Json: TypeAlias = "str | bool | int | float | list[Json] | dict[str, Json] | None"

_DASH = "–"
_LARGE = 10_000


def shown(cell: Cell) -> str:
    """Return a cell as the page shows it, with three decimals and the bounds of an interval in brackets."""
    match cell:
        case None:
            return _DASH
        case bool():
            return "yes" if cell else "no"
        case str():
            return cell
        case int():
            return f"{cell:,}"
        case Measured():
            if not (math.isfinite(cell.lower) and math.isfinite(cell.upper)):
                return shown(cell.value)
            return f"{shown(cell.value)} ({shown(cell.lower)} to {shown(cell.upper)})"
    if not math.isfinite(cell):
        return _DASH
    return f"{cell:,.0f}" if abs(cell) >= _LARGE else f"{cell:,.3f}"


def is_number(cell: Cell) -> bool:
    """Say whether the page aligns the cell as a number."""
    return cell is not None and not isinstance(cell, str | bool)


def as_json(report: Report) -> dict[str, Json]:
    """Return the report as the JSON file has it. What is not finite is null, and texts are as they came."""
    return {
        "title": report.title,
        "lead": report.lead,
        "facts": {name: _cell(value) for name, value in report.facts.items()},
        "figures": _figures(report.figures),
        "sections": [
            {"name": section.name, "title": section.title, "parts": [_part(part) for part in section.parts]}
            for section in report.sections
        ],
    }


def _part(part: Part) -> dict[str, Json]:
    match part:
        case Heading():
            return {"kind": "heading", "text": part.text}
        case Paragraph():
            return {"kind": "paragraph", "text": part.text, "tone": part.tone}
        case Table():
            rows: list[Json] = [[_cell(cell) for cell in row] for row in part.rows]
            return {
                "kind": "table",
                "name": part.name,
                "title": part.title,
                "columns": list(part.columns),
                "rows": rows,
            }
        case Curves():
            curves: list[Json] = [
                {
                    "title": curve.title,
                    "x": _numbers(curve.x),
                    "y": _numbers(curve.y),
                    "lower": _numbers(curve.lower),
                    "upper": _numbers(curve.upper),
                }
                for curve in part.curves
            ]
            return {"kind": "curves", "name": part.name, "title": part.title, "curves": curves}
        case Intervals():
            labelled: list[Json] = [{"label": label, **_measured(found)} for label, found in part.rows]
            return {"kind": "intervals", "name": part.name, "title": part.title, "rows": labelled}
        case Samples():
            return {"kind": "samples", "name": part.name, "title": part.title, "samples": _samples(part)}


def _samples(part: Samples) -> list[Json]:
    return [
        {
            "prompt": sample.prompt,
            "sides": [
                {"title": side.title, "text": side.text, "figures": _figures(side.figures)} for side in sample.sides
            ],
            "figures": _figures(sample.figures),
            "marks": list(sample.marks),
        }
        for sample in part.samples
    ]


def _cell(cell: Cell) -> Json:
    if isinstance(cell, Measured):
        return _measured(cell)
    return _number(cell) if isinstance(cell, float) else cell


def _measured(found: Measured) -> dict[str, Json]:
    return {"value": _number(found.value), "lower": _number(found.lower), "upper": _number(found.upper)}


def _figures(figures: Mapping[str, float]) -> dict[str, Json]:
    return {name: _number(value) for name, value in figures.items()}


def _numbers(values: Sequence[float]) -> list[Json]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
