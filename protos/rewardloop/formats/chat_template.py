"""Chat templates rendered as their authors wrote them: Jinja2 in its sandbox, with the extensions that templates use.

The rendering is that of Hugging Face's ``apply_chat_template``, character for character: the same block trimming, the
``loopcontrols`` extension, ``{% generation %}`` blocks, ``tojson`` without escaping, ``raise_exception`` and
``strftime_now``. Dates are those of the moment of rendering.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class UnusableTemplate(ValueError):
    """Raised when a template is no valid Jinja2."""


class RefusedByTemplate(ValueError):
    """Raised when a template refuses a conversation, for example one with a system turn, or cannot render it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja2 chat template with the names that it reads.

    Args:
        source: The template's text.
        names: Variables beside the messages: the tokenizer's named special tokens, such as ``bos_token``, and options
            of the template, such as ``enable_thinking``.
    """

    source: str
    names: Mapping[str, Any] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        invite: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text.

        Args:
            messages: Turns, oldest first, as Hugging Face takes them: ``role``, ``content`` and what else the template
                reads.
            invite: Whether the text ends with what invites the assistant's answer.
            tools: JSON schemas of the functions that the model may call.

        Raises:
            RefusedByTemplate: The template does not render this conversation.
            UnusableTemplate: The template is not valid.
        """
        given = {**self.names, "messages": list(messages), "tools": tools, "documents": None}
        try:
            return str(self._compiled.render(**given, add_generation_prompt=invite))
        except UnusableTemplate:
            raise
        except Exception as error:  # a template is code: it may fail in any way that Jinja2 and Python have
            raise RefusedByTemplate(f"the chat template refuses the conversation{self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        """Return the template's own words, but nothing that may hold a caller's text."""
        said = str(error)
        return f": {said}" if said and said in self.literals.split("\0") else ""

    @cached_property
    def literals(self) -> str:
        """All text and string constants of the template, joined by NUL: what it may write of its own accord.

        Raises:
            UnusableTemplate: The template is not valid.
        """
        try:
            parsed = _environment().parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UnusableTemplate(f"the chat template is not valid: {error}") from error
        texts = [node.data for node in parsed.find_all(nodes.TemplateData)]
        constants = [node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)]
        return "\0".join([*texts, *constants])

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UnusableTemplate(f"the chat template is not valid: {error}") from error


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training; here it renders as what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
