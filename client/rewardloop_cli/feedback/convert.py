"""The command `feedback convert`: writes what a file says as rows that every command reads without a flag."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO

from rewardloop_cli.failures import UsageError
from rewardloop_cli.feedback.summary import summary_of
from rewardloop_data.recognise import Reading
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile, UnreadableFile, opened
from rewardloop_data.survey import survey
from rewardloop_data.written_rows import row_of


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
