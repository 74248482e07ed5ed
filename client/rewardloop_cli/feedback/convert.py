"""The command `feedback convert`: writes what a file says as rows that every command reads without a flag."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rewardloop.formats.messages import message_of, tools_of
from rewardloop_cli.failures import UsageError
from rewardloop_cli.feedback.summary import summary_of
from rewardloop_data.judgements import Approved, Equal, Graded, Judgement, Ordered, Preferred
from rewardloop_data.recognise import Reading
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile, UnreadableFile, opened
from rewardloop_data.survey import survey


def run(location: str, out: Path | None, choices: Choices) -> int:
    """Convert a file. Returns 0, or 1 if rows of it hold no judgement. Raises UsageError."""
    try:
        with opened(location) as source:
            found = survey(source.shown, source.lines(), choices)
            for line in summary_of(source.name, found, ""):
                print(f"rewardloop: {line}", file=sys.stderr)
            if out is None:
                _write(source, sys.stdout, found.reading)
            else:
                with out.open("w", encoding="utf-8") as target:
                    _write(source, target, found.reading)
    except UnreadableFile as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error
    return int(found.refused > 0)


def _write(source: SourceFile, target: IO[str], reading: Reading) -> None:
    for line in source.lines():
        try:
            rows = [row_of(each) for each in reading.judgements(line.value())]
        except RowError:
            continue
        for row in rows:
            target.write(json.dumps(row, ensure_ascii=False) + "\n")


def row_of(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as a row of a documented shape, which leaves nothing open."""
    tools, said = tools_of(judgement.prompt)
    row: dict[str, Any] = {"prompt": [message_of(turn) for turn in said]}
    return {**row, **({"tools": tools} if tools else {}), **_said(judgement), **dict(_about(judgement))}


def _said(judgement: Judgement) -> dict[str, Any]:
    texts = judgement.responses
    match said := judgement.said:
        case Preferred():
            pair = {"chosen": texts[said.chosen], "rejected": texts[said.rejected]}
            return pair if said.strength is None else {**pair, "strength": said.strength}
        case Equal():
            return {"response_a": texts[said.first], "response_b": texts[said.second], "winner": "tie"}
        case Ordered():
            return {"responses": list(texts), "order": list(said.order)}
        case Approved():
            return {"completion": texts[0], "label": said.up}
        case Graded():
            ends = {"minimum": said.minimum, "maximum": said.maximum}
            return {"completion": texts[0], "rating": said.value, **ends}


def _about(judgement: Judgement) -> Iterator[tuple[str, str]]:
    if judgement.annotator:
        yield "annotator", judgement.annotator
    if judgement.aspect:
        yield "aspect", judgement.aspect
    if judgement.copy:
        yield "judgement_id", f"{judgement.key}#{judgement.copy}"
    elif judgement.key:
        yield "judgement_id", judgement.key
