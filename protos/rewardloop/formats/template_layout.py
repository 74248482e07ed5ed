"""Conversations as the token ids that a chat template and its tokenizer make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from rewardloop.formats.chat_template import ChatTemplate, RefusedByTemplate
from rewardloop.formats.control_tokens import GuardedTokenizer, unused_private_character

Messages = Sequence[Mapping[str, Any]]

_HARMLESS = ("system", "developer", "user", "assistant", "tool")


class TemplateLayout:
    """Renders by the template itself and encodes the whole text, as ``apply_chat_template(tokenize=True)`` does.

    A caller's text never becomes a control token. A text that holds a control token's name gets the ids of its
    characters instead, and the template sees the name interrupted.

    Args:
        tokenizer: The base's tokenizer.
        template: The base's chat template.

    Raises:
        UnusableTemplate: The template is not valid.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.template = template
        self._guarded = GuardedTokenizer(tokenizer, "\0".join([template.literals, *_harmless_renderings(template)]))

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text of a caller may have."""
        return self._guarded.control_ids

    def prompts(self, conversations: Sequence[Messages]) -> list[list[int]]:
        """Ids of each conversation with what invites the answer.

        Raises:
            RefusedByTemplate: The template does not render a conversation.
            ForgedControlToken: Plain text became a control token.
        """
        return self._encode([(messages, True) for messages in conversations])

    def answered(self, conversations: Sequence[Messages]) -> list[list[int]]:
        """Ids of each conversation, whose last turn is the assistant's. Raises as `prompts` does."""
        return self._encode([(messages, False) for messages in conversations])

    def _encode(self, wanted: Sequence[tuple[Messages, bool]]) -> list[list[int]]:
        harmless = [all(map(self._guarded.is_harmless, _texts(messages))) for messages, _ in wanted]
        ids: list[list[int]] = [[] for _ in wanted]
        plain = [place for place, is_harmless in enumerate(harmless) if is_harmless]
        rendered = [self.template.render(wanted[i][0], invite=wanted[i][1]) for i in plain]
        for place, found in zip(plain, self._guarded.encode(rendered), strict=True):
            ids[place] = found
        for place, is_harmless in enumerate(harmless):
            if not is_harmless:
                messages, invite = wanted[place]
                guard = unused_private_character([self.template.source, *_texts(messages)])
                marked = [_mapped(message, lambda text: self._guarded.mark(text, guard)) for message in messages]  # noqa: B023
                (ids[place],) = self._guarded.encode([self.template.render(marked, invite=invite)], guard)
        return ids


def _texts(value: Any) -> Iterable[str]:
    """Every string in a message, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(each, change) for each in value]
    return value


def _harmless_renderings(template: ChatTemplate) -> list[str]:
    """Renderings that show which control tokens the template puts together for each role."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    conversations = [said, *([{"role": role, "content": "d"}, *said] for role in _HARMLESS)]
    found = []
    for conversation in conversations:
        for invite in (False, True):
            try:
                found.append(template.render(conversation, invite=invite))
            except RefusedByTemplate:
                continue
    return found
