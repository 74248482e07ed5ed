"""Reads rows that hold a conversation or a prompt and no judgement: for `rewardloop sft`, and for prompts to answer.

| row | conversation |
| --- | --- |
| ``{messages: [{role, content}, ...]}`` | the messages |
| ``{conversations: [{from, value}, ...]}``, as ShareGPT has them | the messages |
| ``{prompt, completion}``, texts or lists of ``{role, content}`` | the prompt, and the completion as the last turn |
| ``{instruction, input, output}``, as Alpaca has them, also with ``history`` | the prompt, and the output as a turn |

``system`` is a system turn before all others, and ``tools`` lists the functions that may be called. Another key that is
not known to say nothing about the conversation is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewardloop.formats.messages import Turn
from rewardloop_data.rows import Json, RowError, Turns, completion_of, kind_of, messages_of, spoken, tools_in, turns_of
from rewardloop_data.shapes.comparisons import PAIR_KEYS
from rewardloop_data.shapes.published import alpaca_prompt, sharegpt_turns
from rewardloop_data.shapes.shape import HARMLESS, PROMPT, Choices, with_system

# Judgements beside a conversation, which its own keys repeat.
_BESIDE = PAIR_KEYS | {"chosen", "rejected", "label", "response", "responses", "annotator", "tags", "aspect"}


@dataclass(frozen=True, slots=True)
class DialogueRow:
    """The turns of a row, its tools first, and whether its assistant's last turn alone is the answer."""

    turns: Turns
    is_answered: bool


def dialogue_in(row: dict[str, Json]) -> DialogueRow:
    """Return the conversation of a row without nulls. Raises RowError."""
    if "messages" in row:
        _known(row, "messages", "prompt", "completion")
        return _listed(row, "messages")
    if "conversations" in row:
        _known(row, "conversations")
        return _listed(row, "conversations")
    if "instruction" in row and "output" in row:
        _known(row, "instruction", "input", "output", "history", "text", "prompt")
        prompt = alpaca_prompt(row, Choices())
        return DialogueRow((*prompt, Turn("assistant", _answer("output", row["output"], prompt))), True)
    if "prompt" in row and "completion" in row:
        _known(row, "prompt", "completion")
        prompt = prompt_of_row(row)
        return DialogueRow((*prompt, Turn("assistant", _answer("completion", row["completion"], prompt))), True)
    raise RowError("has neither prompt and completion nor messages")


def prompt_in_row(row: dict[str, Json]) -> Turns:
    """Return the prompt of a row without nulls, which may hold an answer to it. Raises RowError."""
    if "prompt" in row and "messages" not in row:
        _known(row, "prompt", "completion")
        return prompt_of_row(row)
    if not {"messages", "conversations", "instruction"} & row.keys():
        raise RowError("has neither prompt nor messages")
    if "instruction" in row and "output" not in row:
        _known(row, "instruction", "input", "history", "text")
        return alpaca_prompt(row, Choices())
    turns = dialogue_in(row).turns
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    if not any(turn.role != "tools" for turn in turns):
        raise RowError("messages: begins with the assistant's only turn")
    return turns


def prompt_of_row(row: dict[str, Json]) -> Turns:
    """Return the prompt at ``prompt`` with the system text and the tools. Raises RowError."""
    return with_system(row.get("system"), turns_of("prompt", row["prompt"], row.get("tools")))


def _listed(row: dict[str, Json], key: str) -> DialogueRow:
    value = row[key]
    if not isinstance(value, list):
        raise RowError(f"{key}: is {kind_of(value)}, not a list")
    said = messages_of(key, value) if key == "messages" else sharegpt_turns(key, value)
    return DialogueRow((*tools_in(row), *with_system(row.get("system"), said)), False)


def _answer(key: str, value: Json, prompt: Turns) -> str:
    return spoken(key, completion_of(key, value, prompt))


def _known(row: dict[str, Json], *keys: str) -> None:
    known = {*keys, *PROMPT, *HARMLESS, *_BESIDE}
    for key in row:
        if key not in known:
            raise RowError(
                f"{key}: is not known, and may change what the row says: leave it out, or call it system, input or "
                "metadata if it is that"
            )
