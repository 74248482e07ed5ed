"""Rows to conversations to learn from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rewardloop.formats.text import Turn
from rewardloop_data.rows import RowError
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.data.files.sft_rows import dialogue_of, read_dialogues


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def turns(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn(each["role"], each["content"]) for each in said(*contents))


def test_a_completion_alone_is_learned_whatever_was_said_before() -> None:
    assert dialogue_of({"prompt": "hi", "completion": "yes"}, "all") == Dialogue(turns("hi", "yes"), 1)
    row: Any = {"prompt": said("hi", "hello", "bye"), "completion": said("bye", "so long")[1:], "id": 3}
    assert dialogue_of(row, "all") == Dialogue(turns("hi", "hello", "bye", "so long"), 3)


def test_messages_are_learned_all_or_last() -> None:
    row: Any = {"messages": said("hi", "hello", "bye", "so long")}
    assert dialogue_of(row, "all").first_learned == 0
    assert dialogue_of(row, "last").first_learned == 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "is a list, not an object"),
        ({"prompt": "hi"}, "has neither prompt and completion nor messages"),
        ({"prompt": "hi", "completion": "  "}, "completion: is empty"),
        ({"prompt": 3, "completion": "x"}, "prompt: is a number, not text"),
        ({"messages": "hi"}, "messages: is text, not a list"),
        ({"messages": []}, "messages: is empty"),
        ({"messages": said("hi", "hello", "bye")}, "messages: ends with the user's turn, not the assistant's"),
        ({"messages": said("hi", "hello")[1:]}, "messages: begins with the assistant's turn"),
        ({"messages": [*said("hi", "hello"), {"role": "system", "content": "x"}, *said("a", "b")]},
         "messages[2]: has a system turn that is not the first: put it there, or make it a user's turn"),
        ({"prompt": "\ud800", "completion": "x"}, "holds text that is not valid Unicode (a lone surrogate)"),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        dialogue_of(row, "all")
    assert str(caught.value) == reason


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.parquet"])
def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "hi", "completion": "yes"}, {"messages": said("a", "b", "c", "d")}]
    path = tmp_path / name
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    if name.endswith("parquet"):
        columns = {key: [row.get(key) for row in rows] for key in ("prompt", "completion", "messages")}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    dialogues, rejections = read_dialogues(SourceFile.of(path).lines(), "all")
    assert dialogues == [Dialogue(turns("hi", "yes"), 1), Dialogue(turns("a", "b", "c", "d"), 0)]
    assert rejections == []


def test_rejected_rows_come_with_their_line_and_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "hi", "completion": "yes"}\n\n{"prompt": "hi"\n{"text": "x"}\n')
    dialogues, rejections = read_dialogues(SourceFile.of(path).lines(), "all")
    assert len(dialogues) == 1
    assert [(r.line, r.row) for r in rejections] == [(3, '{"prompt": "hi"'), (4, {"text": "x"})]
