"""Tools and calls of them on their way from a recorded signal to what a model learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tool_bases import tool_base

from rewardloop.formats.template_layout import TemplateFormat
from rewardloop.formats.text import Encoder
from rewardloop.v1 import feedback_pb2
from rewardloop_client import Feedback
from rewardloop_data.judgements import Labels
from rewardloop_data.recognise import events_of
from rewardloop_data.rows import RowError
from rewardloop_data.source_file import SourceFile
from rewardloop_trainer.archive.entry import InvalidEntry, decode
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.files.policy_rows import read_policy_data
from rewardloop_trainer.data.files.sft_rows import dialogue_of
from rewardloop_trainer.data.preferences import Pair, from_event
from rewardloop_trainer.reward.anchors import Anchor, read_anchors, write_anchors

SCHEMA = {
    "type": "function",
    "function": {"name": "now", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "now", "arguments": {"zone": "CET", "n": 1}}}
SAID: list[dict[str, Any]] = [
    {"role": "user", "content": "Time?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "noon", "name": "now", "tool_call_id": "abcdefghi"},
]


def encoder() -> Encoder:
    base = tool_base("qwen")
    found = base.hugging_face()
    end = int(found.eos_token_id)
    text_format = TemplateFormat(base.template, dict(found.special_tokens_map), end, (end,))
    return Encoder(found.backend_tokenizer, text_format, 4096)


def expected(answer: str) -> list[int]:
    ids: list[int] = (
        tool_base("qwen")
        .hugging_face()
        .apply_chat_template(
            [*SAID, {"role": "assistant", "content": answer}], tools=[SCHEMA], tokenize=True, return_dict=False
        )
    )
    return ids


def events() -> list[feedback_pb2.FeedbackEvent]:
    """The same choice by the client and by an imported row."""
    by_client = Feedback.choice(
        prompt={"messages": SAID, "tools": [SCHEMA]}, responses=["Noon.", "No."], chosen=0, rejected=1
    )
    row: Any = {"prompt": SAID, "tools": json.dumps([SCHEMA]), "chosen": "Noon.", "rejected": "No."}
    return [by_client, *events_of(row, Labels())]


def test_a_recorded_tool_call_is_encoded_as_hugging_face_writes_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    recorded = [decode(f"{i}-0", {b"event": event.SerializeToString()}) for i, event in enumerate(events(), start=1)]
    ledger.append(recorded)
    for row in Ledger(tmp_path).scan():
        (pair,) = from_event(row.event)
        assert isinstance(pair, Pair)
        assert encoder().pair(pair.prompt, pair.chosen).ids == expected("Noon.")
        assert encoder().pair(pair.prompt, pair.rejected).ids == expected("No.")


def test_an_entry_with_a_call_that_is_none_goes_to_the_dead_letters() -> None:
    (event, _) = events()
    event.prompt.conversation.messages[1].tool_calls[0].arguments_json = "5"
    with pytest.raises(InvalidEntry, match=r"prompt\.conversation\.messages\[1\]\.tool_calls\[0\]\.arguments_json"):
        decode("1-0", {b"event": event.SerializeToString()})


def test_files_of_prompts_pairs_and_dialogues_keep_tools_and_calls(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    answered = [*SAID, {"role": "assistant", "content": "Noon."}]
    rows = [
        {"prompt": SAID, "tools": [SCHEMA], "chosen": "Noon.", "rejected": "No."},
        {"messages": answered, "tools": [SCHEMA]},
        {"chosen": answered, "rejected": [*SAID, {"role": "assistant", "content": "No."}], "tools": [SCHEMA]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_policy_data(SourceFile.of(path))
    assert len(data.prompts) == 1
    for pair in data.pairs:
        assert encoder().pair(pair.prompt, pair.chosen).ids == expected("Noon.")
    dialogue = dialogue_of({"messages": answered, "tools": [SCHEMA]}, "last")  # type: ignore[dict-item]
    assert encoder().pair(dialogue.turns[:-1], "Noon.").ids == expected("Noon.")
    anchors = (Anchor(data.prompts[0], "Noon."),)
    write_anchors(tmp_path / "anchors.jsonl", anchors)
    assert read_anchors(tmp_path / "anchors.jsonl") == anchors


def test_a_call_that_would_have_to_be_learned_or_judged_is_refused() -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    called: Any = {"messages": [SAID[0], answer], "tools": [SCHEMA]}
    for learn in ("all", "last"):
        with pytest.raises(RowError, match=r"messages\[1\]: calls a tool"):
            dialogue_of(called, learn)  # type: ignore[arg-type]
    row: Any = {"prompt": "Time?", "chosen": [answer], "rejected": [{"role": "assistant", "content": "No."}]}
    with pytest.raises(RowError, match="chosen: calls a tool"):
        events_of(row, Labels())
