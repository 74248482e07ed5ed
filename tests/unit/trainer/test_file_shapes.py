"""`sft`, `policy-train` and `reward-train` read files by the rules of the import, and refuse what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewardloop_data.recognise import UnclearFile
from rewardloop_data.rows import RowError
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.files.policy_rows import read_policy_data
from rewardloop_trainer.data.files.reward_rows import read_reward_data
from rewardloop_trainer.data.files.sft_rows import dialogue_of
from rewardloop_trainer.data.preferences import Pair

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def _file(folder: Path, *rows: Any) -> SourceFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceFile.of(path)


def _said(turns: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def test_a_system_text_is_part_of_what_is_learned(tmp_path: Path) -> None:
    expected = [("system", "In French."), ("user", "q")]
    source = _file(tmp_path, {"system": "In French.", **PAIR})
    (pair,) = read_policy_data(source).pairs
    (record,) = read_reward_data(source).records
    assert isinstance(record, Pair)
    assert _said(pair.prompt) == _said(record.prompt) == expected
    for row in (
        {"system": "In French.", "prompt": "q", "completion": "a"},
        {"system": "In French.", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"system": "In French.", "conversations": TALK},
        {"system": "In French.", "instruction": "q", "input": "", "output": "a"},
    ):
        assert _said(dialogue_of(row, "last").turns) == [*expected, ("assistant", "a")]
        (prompt,) = read_policy_data(_file(tmp_path, row)).prompts
        assert _said(prompt) == expected


def test_public_shapes_are_read_by_the_commands_that_train(tmp_path: Path) -> None:
    source = _file(
        tmp_path, {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    )
    (pair,) = read_policy_data(source).pairs
    (record,) = read_reward_data(source).records
    assert pair == record
    assert (_said(pair.prompt), pair.chosen, pair.rejected) == ([("user", "q")], "good", "bad")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "responses": ["a", "b"], "chosen": 1}, "--one-based or --zero-based"),
        ({"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}, "--ranks"),
        ({"prompt": "q", "completion": "a", "label": -1}, "--format signed-labels"),
        ({**PAIR, "input": "text"}, "input is 'text'"),
    ],
)
def test_what_the_import_refuses_trains_nothing(tmp_path: Path, row: Any, reason: str) -> None:
    source = _file(tmp_path, row)
    for read in (read_policy_data, read_reward_data):
        with pytest.raises(UnclearFile, match=reason):
            read(source)


def test_a_key_that_may_change_a_conversation_is_named() -> None:
    with pytest.raises(RowError, match="context: is not known, and may change what the row says"):
        dialogue_of({"prompt": "q", "completion": "a", "context": "of this"}, "last")
    assert dialogue_of({"prompt": "q", "completion": "a", "source": "x", "context": None}, "last")
