"""Lays conversations out by affixes, the quick way, or by the chat template if affixes cannot express them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rewardloop.formats.messages import TOOLS
from rewardloop.formats.text import Group, Layout, RefusedConversation, Row, Turn

_T = TypeVar("_T")
_R = TypeVar("_R")


def is_beyond_affixes(conversation: Sequence[Turn]) -> bool:
    """Whether a conversation has tools, calls of them, or names, which only a chat template can express."""
    return any(turn.tool_calls or turn.name or turn.tool_call_id or turn.role == TOOLS for turn in conversation)


class EitherLayout:
    """Lays each conversation out by one of two layouts of the same model. Threads may share it.

    Args:
        by_affixes: For conversations of plain turns.
        by_template: For the others.
    """

    def __init__(self, by_affixes: Layout, by_template: Layout) -> None:
        self._by_affixes = by_affixes
        self._by_template = by_template
        self.end_tokens = by_affixes.end_tokens

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of each conversation with what invites its answer."""
        return _by_turns(conversations, conversations, self._by_affixes.prompts, self._by_template.prompts)

    def rows(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return a row for each response of each group."""
        return _by_turns(groups, _conversations(groups), self._by_affixes.rows, self._by_template.rows)

    def completions(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return the invited prompt and the response up to its end, for each response of each group."""
        return _by_turns(groups, _conversations(groups), self._by_affixes.completions, self._by_template.completions)


def _conversations(groups: Sequence[Group]) -> list[Sequence[Turn]]:
    return [conversation for conversation, _ in groups]


def _by_turns(
    items: Sequence[_T],
    conversations: Sequence[Sequence[Turn]],
    by_affixes: Callable[[Sequence[_T]], list[_R]],
    by_template: Callable[[Sequence[_T]], list[_R]],
) -> list[_R]:
    """Return the result of each item, in their order."""
    beyond = list(map(is_beyond_affixes, conversations))
    if not any(beyond):
        return by_affixes(items)
    quick = iter(by_affixes([item for item, is_beyond in zip(items, beyond, strict=True) if not is_beyond]))
    slow = iter(by_template([item for item, is_beyond in zip(items, beyond, strict=True) if is_beyond]))
    return [next(slow if is_beyond else quick) for is_beyond in beyond]
