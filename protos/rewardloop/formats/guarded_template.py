"""Renders a chat template so that nothing that a caller wrote is read as a control token.

Texts, and what a caller writes in tools and calls of them, are marked before the template renders them.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from tokenizers import Tokenizer

from rewardloop.formats.chat_template import ChatTemplate, RefusedByTemplate
from rewardloop.formats.control_tokens import GuardedTokenizer, UnguardedName, unused_private_character
from rewardloop.formats.messages import Turn, message_of, tools_of
from rewardloop.formats.vocabulary import ROLES

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Tools: TypeAlias = Sequence[Mapping[str, Any]]

# Keys of calls and of JSON schemas, by which templates look things up. All other keys are a caller's text.
_CALL_KEYS = ("id", "type", "function", "name", "arguments")
_SCHEMA_KEYS = (
    *("description", "parameters", "properties", "required", "return", "strict"),
    *("enum", "const", "items", "default", "title", "format", "pattern", "nullable", "anyOf", "allOf", "oneOf"),
    *("additionalProperties", "minimum", "maximum", "minItems", "maxItems"),
)
_STRUCTURE = frozenset((*_CALL_KEYS, *_SCHEMA_KEYS))


# The writer of a text. "tools" stands for everything in tools and calls, and for names and ids.
Speaker: TypeAlias = Literal["assistant", "other", "tools"]
_WORD = re.compile(r"[\w-]*")


class ToolsLeftOut(RefusedByTemplate):
    """Raised when a template does not write a tool, or a call of one, that it is given."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The input of a template: messages as Hugging Face takes them, and the JSON schemas of tools."""

    messages: Messages
    tools: Tools = ()

    @classmethod
    def of(cls, conversation: Sequence[Turn]) -> Asked:
        tools, said = tools_of(conversation)
        return cls([message_of(turn) for turn in said], tools)

    def answered(self, said: str | tuple[str, ...]) -> Asked:
        """Return the same with the assistant's answer: a text, or its steps."""
        return Asked([*self.messages, {"role": "assistant", "content": said}], self.tools)

    @property
    def calls_tools(self) -> bool:
        """Whether there are tools, or calls of them."""
        return bool(self.tools) or any("tool_calls" in message for message in self.messages)

    def texts(self) -> Iterator[tuple[str, Speaker]]:
        """Yield every text, with who wrote it; keys of JSON too, but for those of its structure."""
        for message in self.messages:
            for key, value in message.items():
                if key != "role":
                    yield from ((text, _speaker(message, key)) for text in _strings(value))
        yield from ((text, "tools") for text in _strings(self.tools))

    def changed(self, change: Callable[[str, Speaker], str]) -> Asked:
        """Change every text, given who wrote it."""
        messages = [
            {
                key: value if key == "role" else _mapped(value, partial(_as, change, _speaker(message, key)))
                for key, value in message.items()
            }
            for message in self.messages
        ]
        return Asked(messages, _mapped(self.tools, partial(_as, change, "tools")))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered text, and the character in it that interrupts names of control tokens; empty if there are none."""

    text: str
    guard: str = ""


class GuardedTemplate:
    """Renders a chat template. Threads may share it.

    Args:
        template: The template.
        tokenizer: The base's tokenizer; it is copied.
        step_end: Name of the token that ends each step of an answer; empty if answers have no steps.

    Attributes:
        tokenizer: What encodes the renderings.

    Raises:
        UnusableTemplate: The template is not valid.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, step_end: str = "") -> None:
        self._template = template
        self._step_end = step_end
        said = [*_renderings(template, _SAID), *([step_end] if step_end else [])]
        self.tokenizer = GuardedTokenizer(tokenizer, said, _renderings(template, _CALLED))

    def render(self, asked: Asked, *, invite: bool, guard: str = "") -> Rendered:
        """Render messages; if they hold names of control tokens, these are interrupted by a guard.

        A template that rewrites texts, or puts them between others, could make a name of a harmless text. Its rendering
        is used only if it has the same control tokens as that of interrupted texts.

        Raises:
            RefusedByTemplate: The template does not render the messages.
        """
        rewrites = self._template.may_rewrite
        is_harmless = self._stays_apart(asked)
        if not guard and not rewrites and is_harmless and not self._has_part_of_a_name(asked):
            return Rendered(self._rendered(asked, invite))
        guard = guard or unused_private_character([self._template.source, *(text for text, _ in asked.texts())])
        safe = self._rendered(asked.changed(partial(self.guarded, guard)), invite)
        whole = self._rendered(asked, invite)
        if self._has_equal_names(asked, whole, safe) and (rewrites or is_harmless):
            return Rendered(whole)
        return Rendered(safe, guard)

    def guarded(self, guard: str, text: str, speaker: Speaker) -> str:
        """Return a text with guards, but for a harmless word in a tool or call, by which a template may look things up.

        Raises:
            RefusedByTemplate: The text holds the name of a control token that cannot be interrupted.
        """
        if speaker == "tools" and _WORD.fullmatch(text) and self._is_harmless_word(text):
            return text
        try:
            if self._template.may_rewrite:
                return self.tokenizer.interrupt(text, guard)
            return self.tokenizer.mark(text, guard, by_assistant=speaker == "assistant")
        except UnguardedName as error:
            raise RefusedByTemplate(str(error)) from error

    def check_tools(self, asked: Asked, *, invite: bool) -> None:
        """Check that the template writes every tool and call.

        Raises:
            ToolsLeftOut: It leaves one out.
            RefusedByTemplate: It does not render them.
        """
        if not asked.calls_tools:
            return
        names: list[str] = []
        salt = secrets.token_hex(6)

        def renamed(called: Mapping[str, Any]) -> dict[str, Any]:
            names.append(f"f{salt}n{len(names)}e")
            if isinstance(called.get("function"), Mapping):
                return {**called, "function": {**called["function"], "name": names[-1]}}
            return {**called, "name": names[-1]}

        tools = [renamed(tool) for tool in asked.tools]
        messages = [
            {**message, "tool_calls": [renamed(call) for call in message["tool_calls"]]}
            if "tool_calls" in message
            else message
            for message in asked.messages
        ]
        text = self._rendered(Asked(messages, tools), invite)
        if not all(name in text for name in names):
            raise ToolsLeftOut("the chat template leaves tools or calls of them out")

    def _rendered(self, asked: Asked, invite: bool) -> str:
        messages = [
            message
            if isinstance(steps := message.get("content", ""), str)
            else {**message, "content": "".join(f"{step}{self._step_end}" for step in steps)}
            for message in asked.messages
        ]
        return self._template.render(messages, invite=invite, tools=asked.tools or None)

    def _stays_apart(self, asked: Asked) -> bool:
        """Whether no text holds a control token's name, or a part of one at an end where it could become whole."""
        harmless = self.tokenizer.is_harmless
        return all(harmless(text, by_assistant=speaker == "assistant") for text, speaker in asked.texts())

    def _is_harmless_word(self, word: str) -> bool:
        """Whether the word is no part of a control token's name, and holds none: such a name may be a word too."""
        return self.tokenizer.is_harmless(word) and not self.tokenizer.is_within_a_name(word)

    def _has_part_of_a_name(self, asked: Asked) -> bool:
        """Whether a text of tools and calls is a part of a control token's name."""
        return any(speaker == "tools" and self.tokenizer.is_within_a_name(text) for text, speaker in asked.texts())

    def _has_equal_names(self, asked: Asked, whole: str, safe: str) -> bool:
        """Whether both renderings hold the same control tokens, but for tool markers in texts of the assistant."""
        found, expected = self.tokenizer.names_in(whole), self.tokenizer.names_in(safe)
        if found == expected:
            return True
        markers = self.tokenizer.tool_markers
        if not markers or [n for n in found if n not in markers] != [n for n in expected if n not in markers]:
            return False
        allowed = Counter(name for name in expected if name in markers)
        for text, speaker in asked.texts():
            if speaker == "assistant":
                allowed.update(name for name in self.tokenizer.names_in(text) if name in markers)
        return Counter(name for name in found if name in markers) <= allowed


def _speaker(message: Mapping[str, Any], key: str) -> Speaker:
    if key != "content":
        return "tools"
    return "assistant" if message["role"] == "assistant" else "other"


def _as(change: Callable[[str, Speaker], str], speaker: Speaker, text: str) -> str:
    return change(text, speaker)


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, and the keys in it that are a caller's."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key not in _STRUCTURE:
                yield str(key)
            yield from _strings(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _strings(each)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key if key in _STRUCTURE else change(key): _mapped(each, change) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(each, change) for each in value]
    return value


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


_TALK = (_user("a"), _assistant("b"), _user("c"))
_SAID = (Asked(_TALK), *(Asked([{"role": role, "content": "d"}, *_TALK]) for role in ROLES))
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"p": {"type": "string", "description": "q"}}, "required": []},
    },
}
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"p": "v"}}}
_RESULT = {"role": "tool", "content": "r", "name": "f", "tool_call_id": "abcdefghi"}
_CALLS = (_user("a"), {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT)
_CALLED = (
    Asked(_TALK, [_TOOL]),
    Asked([{"role": "system", "content": "d"}, *_TALK], [_TOOL]),
    Asked(_CALLS, [_TOOL]),
    Asked([*_CALLS, _assistant("b"), _user("c")], [_TOOL]),
    Asked([*_CALLS, _assistant("b"), _user("c")]),
)


def _renderings(template: ChatTemplate, harmless: Sequence[Asked]) -> list[str]:
    """Return renderings that show which control tokens the template puts together for each role."""
    found = []
    for asked in harmless:
        for invite in (False, True):
            try:
                found.append(template.render(asked.messages, invite=invite, tools=asked.tools or None))
            except RefusedByTemplate:
                continue
    return found
