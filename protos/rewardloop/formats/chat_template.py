"""Chat templates rendered as their authors wrote them: Jinja2 in its sandbox, with the extensions that templates use.

The rendering is that of Hugging Face's ``apply_chat_template``, character for character: the same block trimming, the
``loopcontrols`` extension, ``{% generation %}`` blocks, ``tojson`` without escaping, ``raise_exception`` and
``strftime_now``. Dates are those of the moment of rendering.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
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
        _steps.set([0])
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
    def may_rewrite(self) -> bool:
        """Whether the template may do more with a text than to trim it and to put text before and after.

        What it makes of a text, for example by ``replace`` or ``split``, may then hold what the text does not.

        Raises:
            UnusableTemplate: The template is not valid.
        """
        parsed = self._parsed
        filters = {node.name for node in parsed.find_all(nodes.Filter)}
        methods = {call.node.attr for call in parsed.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)}
        parts = [node.node for node in parsed.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Slice)]
        has_parts = any(not (isinstance(of, nodes.Name) and "messages" in of.name) for of in parts)
        return has_parts or not (filters <= _KEEPING_FILTERS and methods <= _KEEPING_METHODS)

    @cached_property
    def looks_into_texts(self) -> bool:
        """Whether what the template writes may depend on what a text holds, for example ``'/think' in content``.

        Raises:
            UnusableTemplate: The template is not valid.
        """
        methods = {call.node.attr for call in self._parsed.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)}
        held = [
            compare.expr.value
            for compare in self._parsed.find_all(nodes.Compare)
            if any(operand.op in ("in", "notin") for operand in compare.ops) and isinstance(compare.expr, nodes.Const)
        ]
        return not methods.isdisjoint(_LOOKING_METHODS) or any(text not in _KEYS for text in held)

    @cached_property
    def reads_tools(self) -> bool:
        """Whether the template may read tools, calls of them, or names beside a turn's role and content.

        Raises:
            UnusableTemplate: The template is not valid.
        """
        read = {node.name for node in self._parsed.find_all(nodes.Name)}
        read |= {node.attr for node in self._parsed.find_all(nodes.Getattr)}
        read |= {node.value for node in self._parsed.find_all(nodes.Const) if isinstance(node.value, str)}
        return not _OF_TOOLS.isdisjoint(read)

    @cached_property
    def literals(self) -> str:
        """All text and string constants of the template, joined by NUL: what it may write of its own accord.

        Raises:
            UnusableTemplate: The template is not valid.
        """
        parsed = self._parsed
        texts = [node.data for node in parsed.find_all(nodes.TemplateData)]
        constants = [node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)]
        return "\0".join([*texts, *constants])

    @cached_property
    def _parsed(self) -> nodes.Template:
        try:
            return _environment().parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UnusableTemplate(f"the chat template is not valid: {error}") from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UnusableTemplate(f"the chat template is not valid: {error}") from error


# Filters and methods with which a text stays whole, but for white space around it, or is only looked at.
_KEEPING_FILTERS = frozenset(
    ("trim", "length", "count", "default", "d", "list", "tojson", "items", "selectattr", "rejectattr")
)
_KEEPING_METHODS = frozenset(
    ("strip", "lstrip", "rstrip", "startswith", "endswith", "items", "keys", "values", "get", "append", "find", "index")
)
_LOOKING_METHODS = frozenset(("startswith", "endswith", "find", "index"))
_KEYS = frozenset(  # of a message or a tool: a template that looks for one looks into no text
    (
        *("role", "content", "tool_calls", "tool_call_id", "name", "thinking", "reasoning", "reasoning_content"),
        *("type", "function", "arguments", "description", "parameters", "properties", "required", "return", "enum"),
    )
)
_OF_TOOLS = frozenset(("tools", "tool_calls", "tool_call_id", "name"))
_MOST_STEPS = 200_000  # of the loops over ranges in one rendering
_LONGEST_PRODUCT = 100_000  # of a text or list that a template multiplies


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training; here it renders as what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, so that what it sets stays within it.
        return nodes.CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end soon, whatever they loop over or multiply."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > _MOST_STEPS or abs(right) > 64):
            raise jinja2.TemplateError("the template computes too large a power")
        sizes = [(a, b) for a, b in ((left, right), (right, left)) if hasattr(a, "__len__") and isinstance(b, int)]
        if any(len(a) * b > _LONGEST_PRODUCT for a, b in sizes):
            raise jinja2.TemplateError("the template makes too long a text")
        return super().call_binop(context, operator, left, right)


_steps: ContextVar[list[int]] = ContextVar("steps of the loops of one rendering")


def _bounded_range(*bounds: int) -> Iterator[int]:
    """Count as ``range`` does. All ranges of a rendering share one bound on their steps."""
    steps = _steps.get([0])
    for number in range(*bounds):
        steps[0] += 1
        if steps[0] > _MOST_STEPS:
            raise jinja2.TemplateError("the template loops too often")
        yield number


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["range"] = _bounded_range
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
