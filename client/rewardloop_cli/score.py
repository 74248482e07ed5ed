"""The command `score`: prints the scores of responses as a table, or scores the rows of a file over one stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple, cast

from rich.console import Console
from rich.table import Table

from rewardloop.formats.messages import prompt_of
from rewardloop_cli.connect import open_client
from rewardloop_cli.failures import UsageError
from rewardloop_client import RewardloopClient, RewardloopError, ScoreGroup, ScoreResult
from rewardloop_client._types import LaneName
from rewardloop_data.rows import Json, RowError, text_of, turns_of
from rewardloop_data.source_file import Line, SourceFile, UnreadableFile


class Named(NamedTuple):
    """The model or mixture that scores, the pinned version, and the reference text of the mixture's rules."""

    pin_version: str | None = None
    model: str = ""
    reference: str = ""


def run(  # noqa: PLR0913 - the options of the command
    *,
    server: str,
    prompt: str | None,
    responses: list[str],
    input_file: Path | None,
    output: Path | None,
    pin_version: str | None,
    model: str,
    reference: str,
    lane: str,
    as_json: bool,
) -> int:
    """Score and print. Returns 1 if some lines of the input failed, else 0. Raises UsageError and RewardloopError."""
    if lane not in ("production", "trainer"):
        raise UsageError(f"--lane {lane}: is not production or trainer")
    with open_client(server, lane=cast(LaneName, lane)) as client, ExitStack() as files:
        if input_file is not None:
            if prompt is not None or responses:
                raise UsageError("give either --input or --prompt with responses")
            lines, target = _open(files, input_file, output)
            try:
                return _score_lines(client, lines, target, Named(pin_version, model, reference))
            except UnreadableFile as error:
                raise UsageError(str(error)) from error
        if prompt is None or not responses:
            raise UsageError("give --prompt and at least one response, or --input")
        result = client.score(prompt, responses, pin_version=pin_version, model=model, reference=reference)
    if as_json:
        print(json.dumps(_fields(result)))
    else:
        _print_table(responses, result, model)
    return 0


def _stdin_lines() -> Iterator[Line]:
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        if raw.strip():
            yield Line(number, 0, raw)


def _open(files: ExitStack, input_file: Path, output: Path | None) -> tuple[Iterator[Line], IO[str]]:
    try:
        lines = _stdin_lines() if str(input_file) == "-" else SourceFile.of(input_file).lines()
        return lines, sys.stdout if output is None else files.enter_context(output.open("w"))
    except UnreadableFile as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from error


def _score_lines(client: RewardloopClient, lines: Iterator[Line], target: IO[str], named: Named) -> int:
    """Write one line for each line of the input, in order, with its number and its scores or its error."""
    numbers: list[int] = []
    unreadable: dict[int, str] = {}

    def groups() -> Iterator[ScoreGroup]:
        for line in lines:
            try:
                group = group_of(line.value(), named)
            except RowError as error:
                unreadable[line.number] = str(error)
                continue
            numbers.append(line.number)
            yield group

    unread = refused = 0
    written = 0

    def write_unreadable(before: float) -> int:
        due = [number for number in sorted(unreadable) if number < before]
        for number in due:
            print(json.dumps({"line": number, "error": unreadable.pop(number)}), file=target)
        return len(due)

    for outcome in client.score_stream(groups()):
        number = numbers[written]
        written += 1
        unread += write_unreadable(number)
        if isinstance(outcome, RewardloopError):
            refused += 1
            print(json.dumps({"line": number, "error": str(outcome), "reason": outcome.reason}), file=target)
        else:
            print(json.dumps({"line": number, **_fields(outcome)}), file=target)
    unread += write_unreadable(float("inf"))
    if failed := unread + refused:
        print(f"rewardloop: {failed} of {unread + written} lines failed", file=sys.stderr)
    return int(failed > 0)


def group_of(row: Json, named: Named) -> ScoreGroup:
    """Return the group of a row. A row's own ``reference`` counts more than the command's. Raises RowError."""
    if not isinstance(row, dict) or "prompt" not in row:
        raise RowError("is not an object with a prompt")
    turns = turns_of("prompt", row["prompt"], row.get("tools"))
    if isinstance(row.get("responses"), list):
        texts = cast("list[Json]", row["responses"])
    elif "chosen" in row and "rejected" in row:
        texts = [row["chosen"], row["rejected"]]
    elif "response" in row:
        texts = [row["response"]]
    else:
        raise RowError("has no responses")
    reference = row.get("reference")
    return ScoreGroup(
        prompt_of(turns),
        [text_of(f"responses[{i}]", text) for i, text in enumerate(texts)],
        pin_version=named.pin_version,
        model=named.model,
        reference=named.reference if reference is None else text_of("reference", reference),
    )


def _fields(result: ScoreResult) -> dict[str, object]:
    return {
        "scores": [s.score for s in result.scores],
        "logits": [s.logit for s in result.scores],
        "uncertainties": [s.uncertainty for s in result.scores],
        "truncated": [s.truncated for s in result.scores],
        "model_version": result.model_version.version,
        **({"parts": _parts(result)} if result.parts else {}),
    }


def _parts(result: ScoreResult) -> dict[str, object]:
    return {
        part.name: {
            "values": list(part.values),
            "weight": part.weight,
            "floor": part.floor,
            "model_version": part.model_version.version if part.model_version else None,
        }
        for part in result.parts
    }


def _print_table(responses: list[str], result: ScoreResult, model: str) -> None:
    has_logit = not result.parts  # a mixture has the values of its parts instead
    table = Table("score", "±", *["logit"] * has_logit, "tokens", *(part.name for part in result.parts), "response")
    for i in sorted(range(len(responses)), key=lambda i: -result.scores[i].score):
        text, s = responses[i], result.scores[i]
        shown = text if len(text) <= 100 else text[:97] + "..."
        tokens = f"{s.token_count}{' (truncated)' if s.truncated else ''}"
        parts = (
            f"{part.values[i]:+.4f}{' (below)' if part.floor is not None and part.values[i] < part.floor else ''}"
            for part in result.parts
        )
        logit = [f"{s.logit:+.4f}"] * has_logit
        table.add_row(f"{s.score:+.4f}", f"{s.uncertainty:.4f}", *logit, tokens, *parts, shown)
    console = Console(markup=False)
    console.print(table)
    t = result.timings
    console.print(
        f"{'mixtures' if result.parts else model or 'reward'} version {result.model_version.version};"
        f" queue {t.queue_us} us, tokenize {t.tokenize_us} us, run {t.run_us} us",
        highlight=False,
    )
