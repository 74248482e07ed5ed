"""Reads rows of a data file as conversations to learn from: those of `rewardloop_data.dialogue_rows`.

Of ``{prompt, completion}`` and ``{instruction, input, output}`` the answer is learned. Of ``messages`` and
``conversations``, which end with the assistant, each of the assistant's turns is, or the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rewardloop.formats.messages import TOOLS
from rewardloop_data.dialogue_rows import dialogue_in
from rewardloop_data.rows import Json, RowError, Turns, kind_of
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
    found = dialogue_in({key: value for key, value in row.items() if value is not None})
    turns = _checked(found.turns)
    if found.is_answered:
        return Dialogue(turns, len(turns) - 1)
    tools = sum(turn.role == TOOLS for turn in turns)
    said = turns[tools:]
    if said[-1].role != "assistant":
        raise RowError(f"messages: ends with the {said[-1].role}'s turn, not the assistant's")
    if said[0].role == "assistant":
        raise RowError("messages: begins with the assistant's turn")
    first = 0 if learn == "all" else len(said) - 1
    if calls := [i for i, turn in enumerate(said) if turn.tool_calls and i >= first]:
        raise RowError(f"messages[{calls[0]}]: calls a tool, and only the text of a turn can be learned")
    return Dialogue(turns, first + tools)


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
