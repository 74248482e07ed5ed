"""The files of `rewardloop critique`: prompts with their answers in, revisions and counts out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rewardloop.formats.messages import message_of, tools_of
from rewardloop_data.rows import Json, RowError, kind_of, messages_of, text_of, turns_of
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.files.policy_rows import UnusableRows
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.judging.constitution import Constitution
from rewardloop_trainer.judging.revision import PrincipleCount, Revised
from rewardloop_trainer.learning.write_whole import write_whole_file

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, with its answer if the file has one."""

    prompt: Prompt
    answer: str | None


def read_asked(source: SourceFile) -> Iterator[Asked]:
    """Yield the prompts of a file, each prompt with its answer once.

    Rows are ``{prompt}``, ``{prompt, completion}``, ``{prompt, response}`` or ``{messages}``, whose last turn is the
    answer if it is the assistant's. Other keys are ignored.

    Raises:
        UnusableRows: If any row cannot be used, or there is none.
        UnreadableFile: If the file cannot be read.
    """
    found: dict[Asked, None] = {}
    problems: list[str] = []
    for line in source.lines():
        try:
            found[_row(line.value())] = None
        except RowError as error:
            problems.append(f"{source.path}:{line.number}: {error}")
    if problems:
        more = [f"{len(problems)} rows are unusable"] if len(problems) > _SHOWN else []
        raise UnusableRows("\n".join([*problems[:_SHOWN], *more]))
    if not found:
        raise UnusableRows(f"{source.path}: has no row")
    yield from found


def _row(row: Json) -> Asked:
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    row = {key: value for key, value in row.items() if value is not None}
    if "prompt" in row:
        prompt = turns_of("prompt", row["prompt"], row.get("tools"))
        for key in ("completion", "response"):
            if key in row:
                text = text_of(key, row[key])
                if not text.strip():
                    raise RowError(f"{key}: is empty")
                return Asked(prompt, text)
        return Asked(prompt, None)
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError("has neither prompt nor messages")
    turns = messages_of("messages", messages)
    if turns[-1].role != "assistant":
        return Asked(turns, None)
    if len(turns) == 1:
        raise RowError("messages: begins with the assistant's only turn")
    return Asked(turns[:-1], turns[-1].content)


def write_all(
    out: Path, model: str, constitution: Constitution, revised: Sequence[Revised], counts: Sequence[PrincipleCount]
) -> None:
    """Write the files of a run into ``out``, each of which appears whole.

    - ``sft.jsonl``: {prompt, completion} with the last answer, for `rewardloop sft`; ``principles`` changed it.
    - ``edits.jsonl``, ``preferences.jsonl``: rows of `rewardloop feedback import`.
    - ``steps.jsonl``: every round with its critique.
    - ``counts.json``: what each principle did.
    """
    about = {"source": "llm_judge", "model": model, "constitution": constitution.label}
    annotator = f"{model}/{constitution.label}"
    changed = [each for each in revised if each.last != each.first]
    _write(
        out / "sft.jsonl", ({**_prompt(r), "completion": r.last, "principles": r.changed_by, **about} for r in revised)
    )
    _write(
        out / "edits.jsonl",
        (
            {
                **_prompt(r),
                "chosen": r.last,
                "rejected": r.first,
                "principles": r.changed_by,
                "annotator": annotator,
                **about,
            }
            for r in changed
        ),
    )
    _write(
        out / "preferences.jsonl",
        (
            {
                **_prompt(each),
                "responses": [step.before, step.after],
                "annotations": [{"annotator": annotator, "choice": said.annotation}],
                "index_base": 0,
                "principle": step.principle.id,
                "probability": said.probability,
                **about,
            }
            for each in revised
            for step in each.steps
            if (said := step.preference) is not None
        ),
    )
    _write(
        out / "steps.jsonl",
        (
            {
                **_prompt(each),
                "round": number,
                "principle": step.principle.id,
                "outcome": step.outcome,
                "before": step.before,
                "critique": step.critique,
                "after": step.after,
                **about,
            }
            for each in revised
            for number, step in enumerate(each.steps, 1)
        ),
    )
    summary = {**about, "answers": len(revised), "changed": len(changed), "principles": [asdict(c) for c in counts]}
    write_whole_file(out / "counts.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def show(
    out: Path,
    output: Literal["table", "json"],
    constitution: Constitution,
    revised: Sequence[Revised],
    counts: Sequence[PrincipleCount],
    refused: int,
) -> None:
    """Print what each principle did on standard output, as a table or as ``counts.json`` has it."""
    if output == "json":
        print(json.dumps(json.loads((out / "counts.json").read_text(encoding="utf-8")), ensure_ascii=False))
        return
    changed = sum(each.last != each.first for each in revised)
    table = Table(title=f"{constitution.label}: {len(revised):,} answers, {changed:,} changed")
    for column in ("principle", "drawn", "changed", "no change", "unreadable", "preferred", "words"):
        table.add_column(column)
    for each in counts:
        preferred = "" if each.preferred is None else f"{each.preferred:.1%}"
        numbers = map(str, (each.drawn, each.changed, each.unchanged, each.unreadable))
        table.add_row(each.id, *numbers, preferred, f"{each.words:+.1f}")
    console = Console()
    console.print(table)
    if refused:
        console.print(f"{refused:,} answers cannot be revised: the model refuses them")


def _prompt(revised: Revised) -> dict[str, Any]:
    tools, said = tools_of(revised.prompt)
    row: dict[str, Any] = {"prompt": [message_of(turn) for turn in said]}
    return {**row, "tools": tools} if tools else row


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
