"""Turns of a conversation with their tool calls, in the forms of the contract and of the ecosystem's files and calls.

A chat template, a data file and a caller write a turn as the mapping ``{"role", "content"}`` with ``tool_calls``,
``name`` and ``tool_call_id`` where it has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rewardloop.v1 import common_pb2

# The role of a turn that stands before all others and lists the tools that may be called, as a JSON array.
TOOLS = "tools"

MAX_TOOLS = 128
MAX_TOOL_CALLS = 128  # of one turn
MAX_NAME_CHARACTERS = 128
MAX_JSON_DEPTH = 32

_READ = frozenset(("role", "content", "tool_calls", "name", "tool_call_id"))


class MessageError(ValueError):
    """Raised for a message of another form than a turn's.

    Attributes:
        field: Which part of the message is wrong; empty for the whole.
        problem: What is wrong with it. It quotes no text of the message.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the assistant. ``arguments`` is the text of a JSON object, and ``id`` may be empty."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: One of `rewardloop.formats.vocabulary.ROLES`; or `TOOLS` for the list of tools before the first turn.
        content: Its text. It may be empty beside tool calls.
        tool_calls: What the assistant calls in this turn.
        name: Of the speaker, or of the tool whose result this is; may be empty.
        tool_call_id: Of the call whose result this is; may be empty.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""

    def __repr__(self) -> str:  # without what is absent: digests of data are made of this text
        more = [(key, getattr(self, key)) for key in ("tool_calls", "name", "tool_call_id")]
        shown = "".join(f", {key}={value!r}" for key, value in more if value)
        return f"Turn(role={self.role!r}, content={self.content!r}{shown})"


def turns(prompt: common_pb2.Prompt) -> tuple[Turn, ...]:
    """Return the turns of a prompt, oldest first, after its tools. Plain text is one user turn."""
    tools = (Turn(TOOLS, f"[{','.join(prompt.tools_json)}]"),) if prompt.tools_json else ()
    if prompt.WhichOneof("content") == "text":
        return (*tools, Turn("user", prompt.text))
    return (*tools, *map(_turn_of_message, prompt.conversation.messages))


def prompt_of(conversation: Iterable[Turn]) -> common_pb2.Prompt:
    """Return the prompt with these turns. One user turn is plain text."""
    prompt = conversation_prompt(conversation)
    said = prompt.conversation.messages
    if len(said) == 1 and said[0] == common_pb2.Message(role="user", content=said[0].content):
        prompt.text = said[0].content
    return prompt


def conversation_prompt(conversation: Iterable[Turn]) -> common_pb2.Prompt:
    """Return the prompt with these turns as a conversation."""
    tools, said = tools_of(conversation)
    tools_json = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    messages = [
        common_pb2.Message(
            role=turn.role,
            content=turn.content,
            tool_calls=[
                common_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
                for call in turn.tool_calls
            ],
            name=turn.name,
            tool_call_id=turn.tool_call_id,
        )
        for turn in said
    ]
    return common_pb2.Prompt(conversation=common_pb2.Conversation(messages=messages), tools_json=tools_json)


def tools_of(conversation: Iterable[Turn]) -> tuple[list[Any], list[Turn]]:
    """Return the tools that a conversation lists, and its turns without the list."""
    tools, said = [], []
    for turn in conversation:
        if turn.role == TOOLS:
            tools += json.loads(turn.content)
        else:
            said.append(turn)
    return tools, said


def tools_turn(tools: object) -> Turn | None:
    """Return the turn that lists tools, given as a list of JSON schemas or as its JSON text; None for no tools.

    Raises:
        MessageError: They are something else. Its field begins with the place of the tool.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise MessageError("", "is text that is not JSON") from error
    if not tools:
        return None
    if not isinstance(tools, Sequence):
        raise MessageError("", f"is {type(tools).__name__}, not a list of JSON schemas")
    texts = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise MessageError(f"[{i}]", f"is {type(tool).__name__}, not a JSON schema")
        texts.append(_object_text(f"[{i}]", tool))
        if problem := tool_problem(texts[-1]):
            raise MessageError(f"[{i}]", problem)
    return Turn(TOOLS, f"[{','.join(texts)}]")


def turn_of(message: Mapping[str, Any], *, strict: bool = False) -> Turn:
    """Return the turn of a message as the ecosystem writes it. Keys without a value are ignored.

    Args:
        message: ``role`` and ``content``, a text or a list of text parts, and ``tool_calls``, ``name`` and
            ``tool_call_id`` where the turn has them. A call is ``{"id", "type", "function": {"name", "arguments"}}`` or
            that function alone; the arguments are an object or the JSON text of one.
        strict: Refuse other keys too.

    Raises:
        MessageError: It has another form.
    """
    given = {key: value for key, value in message.items() if value is not None}
    if "function_call" in given:
        raise MessageError("function_call", "is the old form of tool_calls")
    has_content = "content" in message or "tool_calls" in given
    if "role" not in given or not has_content or (strict and not set(given) <= _READ):
        raise MessageError("", "is not a {role, content} message")
    try:
        content = content_text((given if "tool_calls" in given else message).get("content", ""))
    except ValueError as error:
        raise MessageError("content", str(error)) from error
    calls = given.get("tool_calls", ())
    if isinstance(calls, str) or not isinstance(calls, Sequence):
        raise MessageError("tool_calls", f"is {type(calls).__name__}, not a list of calls")
    return Turn(
        _text("role", given["role"]),
        content,
        tuple(_call_of(f"tool_calls[{i}]", call) for i, call in enumerate(calls)),
        _text("name", given.get("name", "")),
        _text("tool_call_id", given.get("tool_call_id", "")),
    )


def message_of(turn: Turn) -> dict[str, Any]:
    """Return a turn as chat templates read it. What it does not have has no key, but for its content."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")},
            }
            for call in turn.tool_calls
        ]
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def tool_problems(prompt: common_pb2.Prompt, most_bytes: int | None = None) -> Iterator[tuple[str, str]]:
    """Find what is wrong with the tools, tool calls and names of a prompt.

    Args:
        prompt: The prompt; its contents and roles are not looked at otherwise.
        most_bytes: Bound of all its JSON together, in UTF-8; None: there is none.

    Yields:
        The path of a field within the prompt, and what is wrong with it.
    """
    messages = prompt.conversation.messages
    calls = [(f"conversation.messages[{i}]", message) for i, message in enumerate(messages) if message.tool_calls]
    for i, message in enumerate(messages):
        for field in ("name", "tool_call_id"):
            if len(getattr(message, field)) > MAX_NAME_CHARACTERS:
                yield f"conversation.messages[{i}].{field}", f"more than {MAX_NAME_CHARACTERS} characters"
        if message.tool_call_id and message.role != "tool":
            yield f"conversation.messages[{i}].tool_call_id", "the role is not tool"
    if not calls and not prompt.tools_json:
        return
    texts = [*prompt.tools_json, *(call.arguments_json for _, message in calls for call in message.tool_calls)]
    if most_bytes is not None and sum(len(text.encode()) for text in texts) > most_bytes:
        yield "tools_json", f"more than {most_bytes} bytes of JSON in tools and tool calls"
        return
    if len(prompt.tools_json) > MAX_TOOLS:
        yield "tools_json", f"more than {MAX_TOOLS} tools"
        return
    for i, text in enumerate(prompt.tools_json):
        if problem := tool_problem(text):
            yield f"tools_json[{i}]", problem
    for path, message in calls:
        if message.role != "assistant":
            yield f"{path}.tool_calls", "the role is not assistant"
        if len(message.tool_calls) > MAX_TOOL_CALLS:
            yield f"{path}.tool_calls", f"more than {MAX_TOOL_CALLS} calls"
            continue
        for i, call in enumerate(message.tool_calls):
            if not 1 <= len(call.name) <= MAX_NAME_CHARACTERS:
                yield f"{path}.tool_calls[{i}].name", f"not 1 to {MAX_NAME_CHARACTERS} characters"
            if len(call.id) > MAX_NAME_CHARACTERS:
                yield f"{path}.tool_calls[{i}].id", f"more than {MAX_NAME_CHARACTERS} characters"
            if call.arguments_json and (problem := _object_problem(call.arguments_json)):
                yield f"{path}.tool_calls[{i}].arguments_json", problem


def tool_problem(text: str) -> str:
    """Return what is wrong with the JSON text of a tool; empty if nothing is."""
    if problem := _object_problem(text):
        return problem
    tool = json.loads(text)
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return "" if isinstance(name, str) and name else "has no function with a name"


def content_text(content: object) -> str:
    """Return the text of a message's content: the text itself, or a list's parts ``{"type": "text", "text"}`` joined.

    Raises:
        ValueError: If it is neither, for example an image. The message says what it is.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"is {type(content).__name__}, not text or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ValueError(f"part {i} is no text part: models read text only")
        texts.append(text)
    return "".join(texts)


def _turn_of_message(message: common_pb2.Message) -> Turn:
    if not (message.tool_calls or message.name or message.tool_call_id):
        return Turn(message.role, message.content)
    calls = tuple(ToolCall(call.name, call.arguments_json or "{}", call.id) for call in message.tool_calls)
    return Turn(message.role, message.content, calls, message.name, message.tool_call_id)


def _call_of(field: str, call: object) -> ToolCall:
    if not isinstance(call, Mapping):
        raise MessageError(field, f"is {type(call).__name__}, not a call")
    if call.get("type") not in (None, "function"):
        raise MessageError(f"{field}.type", "is not function")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise MessageError(field, "has no function with a name")
    arguments = function.get("arguments")
    arguments = "{}" if arguments is None or arguments == "" else arguments
    if isinstance(arguments, Mapping):
        text = _object_text(f"{field}.arguments", arguments)
    else:
        text = _text(f"{field}.arguments", arguments)
    if problem := _object_problem(text):
        raise MessageError(f"{field}.arguments", problem)
    return ToolCall(_text(f"{field}.name", function["name"]), text, _text(f"{field}.id", call.get("id") or ""))


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise MessageError(field, f"is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MessageError(field, "is not valid Unicode (it holds a lone surrogate)") from error
    return value


def _object_text(field: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(field, "holds a value that is not JSON") from error


def _object_problem(text: str) -> str:
    """Return why a text is no JSON object that models may read; empty if it is one."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            return "is not the text of a JSON object"
        if _is_deeper(value, MAX_JSON_DEPTH):
            return f"is nested more than {MAX_JSON_DEPTH} deep"
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "holds text that is not valid Unicode (a lone surrogate)"
    except RecursionError:
        return f"is nested more than {MAX_JSON_DEPTH} deep"
    except ValueError:  # no JSON, or a number that JSON does not know
        return "is not the text of a JSON object"
    return ""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _is_deeper(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth == 0 or any(_is_deeper(each, depth - 1) for each in value.values())
    if isinstance(value, list):
        return depth == 0 or any(_is_deeper(each, depth - 1) for each in value)
    return False
