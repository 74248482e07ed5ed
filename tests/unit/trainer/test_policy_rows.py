"""Rows of `policy-train` that hold no preference, and what a conversation's prompt is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.data.files.policy_rows import PolicyData, UnusableRows, read_policy_data

PAIR = {"prompt": "q1", "chosen": "a", "rejected": "b"}


def read(directory: Path, *rows: dict[str, Any]) -> PolicyData:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_policy_data(SourceFile.of(path))


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "tie",
    [
        {"prompt": "q2", "responses": ["a", "b"], "annotations": [{"choice": "tie"}]},
        {"prompt": "q2", "response_1": "a", "response_2": "b", "preference_strength": 0},
    ],
)
def test_a_tie_gives_its_prompt_and_the_other_rows_of_the_file_are_read(tmp_path: Path, tie: dict[str, Any]) -> None:
    data = read(tmp_path, PAIR, tie)
    assert [prompt[-1].content for prompt in data.prompts] == ["q1", "q2"]
    assert [(pair.chosen, pair.rejected) for pair in data.pairs] == [("a", "b")]


def test_a_comparison_by_strength_is_a_pair_and_not_a_prompt_alone(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}
    assert [(pair.chosen, pair.rejected) for pair in read(tmp_path, row).pairs] == [("b", "a")]


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        (("u1",), ("u1",)),
        (("u1", "a1"), ("u1",)),
        (("u1", "a1", "u2"), ("u1", "a1", "u2")),
        (("u1", "a1", "u2", "a2"), ("u1", "a1", "u2")),
    ],
)
def test_the_prompt_of_a_conversation_is_all_that_comes_before_the_next_answer(
    tmp_path: Path, texts: tuple[str, ...], prompt: tuple[str, ...]
) -> None:
    (found,) = read(tmp_path, {"messages": said(*texts)}).prompts
    assert tuple(turn.content for turn in found) == prompt


def test_a_response_that_is_compared_with_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableRows, match=r"ranking|itself|same"):
        read(tmp_path, {"prompt": "q", "responses": ["a", "a"], "ranking": [0, 1]})
