"""The command `label export`: writes the answers of a project as JSON lines, Parquet, or another tool's JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_cli.feedback.summary import short_text
from rewardloop_cli.label.forms import FORMS
from rewardloop_cli.label.tools import TOOLS, by_task
from rewardloop_client import GivenAnswer, RewardloopClient
from rewardloop_data.target_file import UnwritableFile, whole

_EXAMPLES = 3
_PARQUET = (".parquet", ".pq")
# Endings that name a format. A file with any other ending may hold any format.
_LINES, _ARRAY, _OTHERS = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv", ".gz", ".zst", ".bz2", ".xz")
_REPORTED_EVERY = 5_000


def run(
    server: str, project: str, form: str, out: Path | None, *, replace: bool = False, dry_run: bool, as_json: bool
) -> int:
    """Export a project. Returns 0. Raises UsageError and RewardloopError."""
    if form not in (*FORMS, *TOOLS):
        raise UsageError(f"--format {form}: is not one of {', '.join((*FORMS, *TOOLS))}")
    is_parquet = out is not None and out.suffix.lower() in _PARQUET
    if is_parquet and form not in FORMS:
        raise UsageError(f"--format {form}: that tool reads no Parquet; name the file .json")
    if out is not None:
        _check_ending(out, form)
    if out is not None and out.exists() and not replace and not dry_run:
        raise UsageError(f"{out}: exists already; --replace replaces it")
    left_out: Counter[str] = Counter()
    with open_client(server, timeout_s=60.0) as client:
        rows = list(_rows(_wanted(client, project, form, left_out), form, left_out))
    if dry_run:
        _show(project, form, rows, left_out, as_json=as_json)
        return 0
    try:
        _write(rows, form, out, replace=replace, is_parquet=is_parquet)
    except UnwritableFile as error:
        raise UsageError(str(error)) from error
    if out is not None:
        _show(project, form, rows, left_out, as_json=as_json, examples=0)
    return 0


def _check_ending(out: Path, form: str) -> None:
    """Raise UsageError if the file's name has the ending of another format."""
    ending = out.suffix.lower()
    if form in TOOLS and ending in (*_LINES, *_OTHERS):
        raise UsageError(f"{out}: --format {form} is one JSON array; name the file .json")
    if form in FORMS and ending in (*_ARRAY, *_OTHERS):
        raise UsageError(f"{out}: --format {form} is JSON lines or Parquet; name the file .jsonl or .parquet")


def _wanted(client: RewardloopClient, project: str, form: str, left_out: Counter[str]) -> Iterator[GivenAnswer]:
    """Yield the answers that are exported, and say on a terminal how many there are so far."""
    for number, answer in enumerate(client.labelling.answers(project), start=1):
        if number % _REPORTED_EVERY == 0 and sys.stderr.isatty():
            print(f"rewardloop: {number} answers", file=sys.stderr)
        if form != "answers" and answer.verdict.HasField("skip"):
            left_out["skips"] += 1
        elif form != "answers" and answer.is_repeat:
            left_out["repeats"] += 1
        else:
            yield answer


def _rows(answers: Iterable[GivenAnswer], form: str, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    if form in TOOLS:
        yield from map(TOOLS[form], by_task(answers))
        return
    for answer in answers:
        rows = list(FORMS[form](answer))
        if not rows:
            left_out[f"answers that {form} has no row for"] += 1
        yield from rows


def _write(rows: list[dict[str, Any]], form: str, out: Path | None, *, replace: bool, is_parquet: bool) -> None:
    """Write the rows to standard output, or to a file that appears whole or not at all.

    Raises UnwritableFile and UsageError.
    """
    if out is None:
        sys.stdout.write(_text(rows, form))
        return
    with whole(out, replace=replace) as partial:
        if is_parquet:
            _write_parquet(rows, partial)
        else:
            partial.write_text(_text(rows, form), encoding="utf-8")


def _text(rows: list[dict[str, Any]], form: str) -> str:
    if form in TOOLS:
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("writing Parquet needs pyarrow: pip install 'rewardloop[parquet]'") from error
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        raise UsageError(
            f"the rows have no one Parquet schema, because prompts are texts and messages: write JSON lines ({error})"
        ) from error
    pq.write_table(table, path)


def _show(
    project: str,
    form: str,
    rows: list[dict[str, Any]],
    left_out: Counter[str],
    *,
    as_json: bool,
    examples: int = _EXAMPLES,
) -> None:
    if as_json:
        found = {"project": project, "format": form, "rows": len(rows), "left_out": dict(left_out)}
        print(json.dumps({**found, "examples": rows[:examples]} if examples else found))
        return
    left = "".join(f", {count} {what} left out" for what, count in left_out.items())
    print(f"{project}: {len(rows)} rows of {form}{left}")
    for number, row in enumerate(rows[:examples], start=1):
        print(f"  example {number}:")
        for key, value in row.items():
            print(
                f"    {key}: {short_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}"
            )
