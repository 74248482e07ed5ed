"""Reads the values of a row: JSON, texts, and conversations in the forms of Hugging Face's data sets, without I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NoReturn, TypeAlias, TypeGuard

from rewardloop.formats.messages import MessageError, Turn, tools_of, tools_turn, turn_of
from rewardloop.formats.vocabulary import ROLES

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Turns: TypeAlias = tuple[Turn, ...]

_FIRST_ROLES = ("system", "developer")
# Marks that a chat template writes between turns, and beginnings of a transcript. No single turn has one of them.
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|user|assistant|system|end)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<<SYS>>|\A\s*(?:Human|Assistant):"
)


class RowError(ValueError):
    """Raised for a row that cannot be read. The message says why."""


def parse_line(line: bytes) -> Json:
    """Return the JSON value of a line. Raises RowError, also for NaN and infinities, which are not JSON."""

    def refuse(name: str) -> NoReturn:
        raise RowError(f"{name} is not a JSON number")

    try:
        value: Json = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise RowError(f"is not JSON: {error.msg} (character {error.pos})") from error
    except RecursionError as error:
        raise RowError("is nested too deeply") from error
    except ValueError as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"is not JSON: {error}") from error  # an integer of thousands of digits
    return value


def turns_of(field: str, value: Json, tools: Json = None) -> Turns:
    """Return the turns of a prompt, after the list of its tools if it has any. A text is one user turn.

    Raises:
        RowError: They have another form.
    """
    listed = tools_in({"tools": tools})
    if isinstance(value, list):
        turns = messages_of(field, value)
        if turns[-1].role == "assistant":
            raise RowError(f"{field}: ends with the assistant's turn")
        return (*listed, *turns)
    return (*listed, Turn("user", text_of(field, value)))


def tools_in(row: Mapping[str, Json]) -> Turns:
    """Return the turn that lists the tools of a row; none if it has no tools. Raises RowError."""
    try:
        listed = tools_turn(row.get("tools"))
    except MessageError as error:
        raise RowError(f"tools{error.field}: {error.problem}") from error
    return () if listed is None else (listed,)


def text_of(field: str, value: Json) -> str:
    """Return ``value`` if it is a text that is not empty. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{field}: is {kind_of(value)}, not text")
    if not value.strip():
        raise RowError(f"{field}: is empty")
    return value


def messages_of(field: str, value: list[Json]) -> Turns:
    """Return the turns of a conversation. A system turn without text is left out. Raises RowError."""
    if not value:
        raise RowError(f"{field}: is empty")
    turns: list[Turn] = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or "role" not in turn or not {"content", "tool_calls"} & turn.keys():
            raise RowError(f"{field}[{i}]: is not a {{role, content}} message")
        role = turn["role"]
        if role not in ROLES:
            raise RowError(f"{field}[{i}].role: is {short(role)}, not one of {', '.join(ROLES)}")
        try:
            turns.append(turn_of(turn))
        except MessageError as error:
            raise RowError(f"{field}[{i}]{f'.{error.field}' if error.field else ''}: {error.problem}") from error
        if role in _FIRST_ROLES:
            if any(turn.role not in _FIRST_ROLES for turn in turns):
                raise RowError(
                    f"{field}[{i}]: has a {role} turn that is not the first: put it there, or make it a user's turn"
                )
            if not turns[-1].content.strip():
                turns.pop()
                continue
        if not turns[-1].tool_calls:
            text_of(f"{field}[{i}].content", turns[-1].content)
        elif role != "assistant":
            raise RowError(f"{field}[{i}].tool_calls: the role is {short(role)}, not assistant")
    if not turns:
        raise RowError(f"{field}: is empty but for its {role} turn")
    return tuple(turns)


def spoken(field: str, text: str) -> str:
    """Return ``text`` if it is what one speaker says, and no rendered conversation. Raises RowError."""
    begins = text[:200].lstrip().startswith(("Human:", "Assistant:"))
    if (begins or "<" in text or "[" in text) and (found := _MARKS.search(text)):  # most texts have neither
        raise RowError(
            f"{field}: holds {short(found[0].strip())}, which stands between the turns of a rendered conversation: "
            "--format hh-rlhf or --format chatml reads such conversations, and --verbatim takes the text as it is"
        )
    return text


def completion_of(field: str, value: Json, prompt: Turns) -> str:
    """Return the assistant's one turn after the prompt. ``value`` may repeat the prompt. Raises RowError."""
    if not isinstance(value, list):
        return text_of(field, value)
    turns, said = messages_of(field, value), tuple(tools_of(prompt)[1])
    if turns[: len(said)] == said:
        turns = turns[len(said) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(f"{field}: is not one assistant's turn after the prompt")
    if turns[0].tool_calls:
        raise RowError(f"{field}: calls a tool, and only the text of a turn can be judged")
    return turns[0].content


def common_start(chosen: Turns, rejected: Turns) -> Turns:
    """Return the turns with which both conversations begin. Raises RowError."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == 0:
        raise RowError("chosen and rejected do not begin with the same prompt")
    if same == len(chosen) == len(rejected):
        raise RowError("chosen and rejected are the same")
    if chosen[same - 1].role == "assistant":
        raise RowError("chosen and rejected do not differ in an assistant's turn")
    return chosen[:same]


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number. True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "absent" if value is None else names.get(type(value), type(value).__name__)


def short(value: object) -> str:
    """Return the value for a message, cut off after 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
