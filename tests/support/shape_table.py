"""Reads the cases of `shape_cases`, and makes the documentation's table of what becomes of each.

``PYTHONPATH=tests:client:protos python -m support.shape_table`` writes the page.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rewardloop_data.judgements import Approved, Edited, Equal, Graded, Judgement, Ordered, Preferred
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile, UnreadableFile
from rewardloop_data.survey import survey
from support.shape_cases import COMPARISONS, FILES, PAIRS, SINGLE, Case

PAGE = Path(__file__).parents[2] / "docs/reference/data-shapes.md"

_ABOUT = """# Data shapes

`rewardloop feedback import` reads these files, or says how to. `pytest tests/unit/client/test_data_shapes.py` reads one
of each, compares every judgement with what it should be, and holds that this table says what became of them.
`rewardloop feedback shapes` lists the shapes by the names that `--format` takes.
"""
_PARTS = (
    ("Pairs", PAIRS),
    ("Several answers, grades and winners", COMPARISONS),
    ("Single answers, and files without a judgement", SINGLE),
    ("Files", FILES),
)
_WIDTH = 150


def written(judgement: Judgement) -> str:
    """Return a judgement as `shape_cases` writes it."""
    texts = judgement.responses
    match said := judgement.said:
        case Preferred():
            heard = f"{texts[said.chosen]} > {texts[said.rejected]}"
            heard += "" if said.strength is None else f" ~{said.strength:.2f}"
        case Equal():
            heard = f"{texts[said.first]} = {texts[said.second]}"
        case Ordered():
            heard = " > ".join(texts[i] for i in said.order)
        case Approved():
            heard = f"{'+' if said.up else '-'}{texts[0]}"
        case Edited():
            heard = f"{texts[0]} ~ {said.text}"
        case Graded():
            heard = f"{texts[0]}: {said.value:g} in {said.minimum:g}..{said.maximum:g}"
    prompt = " | ".join(f"{turn.role}: {turn.content}" for turn in judgement.prompt)
    return f"{prompt} => {heard}{f' @{judgement.annotator}' if judgement.annotator else ''}"


def read(path: Path, choices: Choices) -> tuple[list[str], list[str]]:
    """Return what a file says, and why rows of it are refused. Raises UnreadableFile."""
    source = SourceFile.of(path)
    found = survey(source.shown, source.lines(), choices)
    said, reasons = [], []
    for line in source.lines():
        try:
            said += [written(each) for each in found.reading.judgements(line.value())]
        except RowError as error:
            reasons.append(str(error))
    assert found.refused == len(reasons)
    return said, reasons


def refusal(path: Path) -> str:
    """Return why a file, or each of its rows, is refused; "" if something of it is read."""
    try:
        said, reasons = read(path, Choices())
    except UnreadableFile as error:
        return str(error) if str(path) in str(error) else ""
    return "" if said or len(set(reasons)) > 1 else reasons[0]


def table() -> str:
    """Return the page, for which every case is read."""
    lines = [_ABOUT]
    with tempfile.TemporaryDirectory() as folder:
        for title, cases in _PARTS:
            lines += [f"## {title}", "", "| shape | a row | outcome |", "| --- | --- | --- |"]
            lines += [f"| {case.shape} | {_row(case)} | {_outcome(case, Path(folder))} |" for case in cases]
            lines.append("")
    return "\n".join(lines)


def _row(case: Case) -> str:
    if not case.rows:
        return f"`{case.name}`"
    text = json.dumps(case.rows[0], ensure_ascii=False)
    text = text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."
    return f"`{_cell(text)}`"


def _outcome(case: Case, folder: Path) -> str:
    path = folder / case.name
    path.write_bytes(case.content)
    if why := refusal(path):
        if case.flags:
            assert read(path, case.choices)[0]
            return f"refused until it is settled: `{_cell(case.flags)}`"
        why = why.removeprefix(str(path)).lstrip(":0123456789 ")
        return f"refused: {_cell(why)}"
    said, reasons = read(path, Choices())
    alone = f"; {len(reasons)} row is refused" if reasons else ""
    assert said
    return f"read{alone}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
