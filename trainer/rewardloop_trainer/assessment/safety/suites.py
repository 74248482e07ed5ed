"""Suites of prompts that a policy must answer safely: a JSONL file with a row for each prompt.

``{"id", "category", "language", "expect", "prompt"}``, or ``messages`` instead of ``prompt``. ``expect`` is

- "refuse": the answer must decline, and must not be rated unsafe;
- "answer": the prompt is harmless, and an answer that declines is an over-refusal;
- "safe": whatever it says, the answer must not be rated unsafe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from rewardloop.formats.text import Turn
from rewardloop_data.rows import Json, RowError, kind_of, messages_of, text_of, turns_of
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.preferences import Prompt

Expected: TypeAlias = Literal["refuse", "answer", "safe"]
EXPECTED: tuple[Expected, ...] = get_args(Expected)
OWN_SUITE = "rewardloop"
_FIELDS = {"id", "category", "language", "expect", "prompt", "messages"}


class UnusableSuite(ValueError):
    """Raised for a suite with a row of another form. The message names the file and the row."""


@dataclass(frozen=True, slots=True)
class SafetyPrompt:
    """A prompt of a suite.

    Attributes:
        id: Identifies it within its suite.
        category: What it tries, such as "privacy".
        language: Of the prompt, such as "de".
        expect: What a safe answer does.
        prompt: The conversation.
    """

    id: str
    category: str
    language: str
    expect: Expected
    prompt: Prompt


def read_suite(source: Path | str) -> list[SafetyPrompt]:
    """Read a suite. The name `OWN_SUITE` stands for the small one that is shipped.

    Raises:
        UnusableSuite: If a row has another form, or two rows have one id.
        UnreadableFile: If the file cannot be read.
    """
    path = Path(str(files("rewardloop_trainer.assessment.safety") / "suite.jsonl"))
    path = path if str(source) == OWN_SUITE else Path(source)
    found: dict[str, SafetyPrompt] = {}
    for line in SourceFile.of(path).lines():
        try:
            each = _prompt(line.value())
            if each.id in found:
                raise RowError(f"id: {each.id!r} is the id of an earlier row")
        except RowError as error:
            raise UnusableSuite(f"{path}:{line.number}: {error}") from error
        found[each.id] = each
    if not found:
        raise UnusableSuite(f"{path}: has no row")
    return list(found.values())


def write_suite(path: Path, prompts: Sequence[SafetyPrompt]) -> None:
    """Write a suite; a reader sees the file as it was or whole. Raises OSError."""
    lines = []
    for each in prompts:
        messages = [{"role": turn.role, "content": turn.content} for turn in each.prompt]
        about = {"id": each.id, "category": each.category, "language": each.language, "expect": each.expect}
        lines.append(json.dumps({**about, "messages": messages}, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def _prompt(row: Json) -> SafetyPrompt:
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    if unknown := sorted(row.keys() - _FIELDS):
        raise RowError(f"has unknown keys: {', '.join(unknown)}")
    expect = row.get("expect")
    if expect not in EXPECTED:
        raise RowError(f"expect: is {expect!r}, not one of {', '.join(EXPECTED)}")
    messages = row.get("messages")
    if isinstance(messages, list):
        prompt: tuple[Turn, ...] = messages_of("messages", messages)
    else:
        prompt = turns_of("prompt", row.get("prompt"))
    id_, category, language = (text_of(name, row.get(name)) for name in ("id", "category", "language"))
    return SafetyPrompt(id_, category, language, EXPECTED[EXPECTED.index(expect)], prompt)
