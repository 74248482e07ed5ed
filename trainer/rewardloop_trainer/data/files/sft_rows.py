"""Reads rows of a data file as conversations to learn from.

| row | learned |
| --- | --- |
| ``{prompt, completion}``, texts or lists of ``{role, content}`` | the completion |
| ``{messages: [{role, content}, ...]}``, ending with the assistant | each of the assistant's turns, or the last |

Other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rewardloop_data.rows import Json, RowError, Turns, completion_of, kind_of, messages_of, tools_in, turns_of
from rewardloop_data.side_files import Rejection
from rewardloop_data.source_file import Line
from rewardloop_trainer.data.dialogues import Dialogue


def read_dialogues(lines: Iterable[Line], learn: Literal["all", "last"]) -> tuple[list[Dialogue], list[Rejection]]:
    """The conversations of the valid rows, and the rejected rows with their reasons, both in the file's order."""
    dialogues, rejections = [], []
    for line in lines:
        try:
            dialogues.append(dialogue_of(line.value(), learn))
        except RowError as error:
            rejections.append(Rejection(line.number, str(error), line.kept()))
    return dialogues, rejections


def dialogue_of(row: Json, learn: Literal["all", "last"]) -> Dialogue:
    """The conversation of one row; ``learn`` tells which of the assistant's turns in ``messages`` are learned.

    Raises:
        RowError: If the row is not a conversation to learn from.
    """
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object")
    messages = row.get("messages")
    if messages is None:
        if row.get("prompt") is None or row.get("completion") is None:
            raise RowError("has neither prompt and completion nor messages")
        prompt = turns_of("prompt", row["prompt"], row.get("tools"))
        text = completion_of("completion", row["completion"], prompt)
        return Dialogue.answered(_checked(prompt), _unicode(text))
    if not isinstance(messages, list):
        raise RowError(f"messages: is {kind_of(messages)}, not a list")
    turns = _checked(messages_of("messages", messages))
    if turns[-1].role != "assistant":
        raise RowError(f"messages: ends with the {turns[-1].role}'s turn, not the assistant's")
    if turns[0].role == "assistant":
        raise RowError("messages: begins with the assistant's turn")
    if any(turn.role == "system" for turn in turns[1:]):
        raise RowError("messages: has a system turn that is not the first")
    first = 0 if learn == "all" else len(turns) - 1
    if calls := [i for i, turn in enumerate(turns) if turn.tool_calls and i >= first]:
        raise RowError(f"messages[{calls[0]}]: calls a tool, and only the text of a turn can be learned")
    tools = tools_in(row)
    return Dialogue((*tools, *turns), first + len(tools))


def _checked(turns: Turns) -> Turns:
    for turn in turns:
        _unicode(turn.content)
    return turns


def _unicode(text: str) -> str:
    """Raises RowError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("holds text that is not valid Unicode (a lone surrogate)") from error
    return text
