"""The template layout: the authors' chat template is rendered, and the whole text is encoded by their tokenizer.

The ids are those of Hugging Face's ``apply_chat_template(tokenize=True)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from tokenizers import Tokenizer

from rewardloop.formats.chat_template import ChatTemplate, RefusedByTemplate
from rewardloop.formats.control_tokens import ForgedControlToken, GuardedTokenizer, unused_private_character
from rewardloop.formats.text import Group, RefusedConversation, Row, Turn
from rewardloop.formats.vocabulary import ROLES

Messages: TypeAlias = Sequence[Mapping[str, Any]]

KIND = "template"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TemplateFormat:
    """The layout of a conversation by its chat template.

    Attributes:
        template: The Jinja2 template.
        names: What the template reads beside the messages; see `ChatTemplate`.
        pad: Id of the padding token.
        ends: The ids of which each ends an answer. The first is the one that the template writes after an answer.
        unread: An id that a reward model does not read at the end of a sequence, because the Hugging Face class of its
            head takes it for padding; None if there is none.
        closing: What a reward model reads after a response in place of what the template writes there; None if it reads
            what the template writes.
    """

    template: str
    names: Mapping[str, Any] = field(default_factory=dict)
    pad: int = 0
    ends: tuple[int, ...] = ()
    unread: int | None = None
    closing: tuple[int, ...] | None = None

    @property
    def segment_ids(self) -> bool:
        """False: no model with a chat template takes token_type_ids."""
        return False

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand in the format itself."""
        return (self.pad, *self.ends, *(self.closing or ()))

    def layout(self, tokenizer: Tokenizer) -> TemplateLayout:
        """Return what lays texts out with this tokenizer. Raises `UnusableTemplate`."""
        return TemplateLayout(tokenizer, self)

    def answer(self, sampled: Sequence[int]) -> list[int]:
        """Return the ids of a sampled answer that ended, without its end."""
        return list(sampled[:-1])

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds of the format."""
        return {
            "kind": KIND,
            "template": self.template,
            "names": dict(self.names),
            "pad": self.pad,
            "ends": list(self.ends),
            "unread": self.unread,
            "closing": None if self.closing is None else list(self.closing),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TemplateFormat:
        """Return the layout that `to_json` wrote. Raises KeyError, TypeError or ValueError for a malformed mapping."""
        return cls(
            template=_checked(data["template"], str),
            names=dict(_checked(data["names"], dict)),
            pad=int(data["pad"]),
            ends=tuple(map(int, _checked(data["ends"], list))),
            unread=None if data["unread"] is None else int(data["unread"]),
            closing=None if data.get("closing") is None else tuple(map(int, data["closing"])),
        )


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A rendered text, and the character in it that interrupts names of control tokens; empty if there are none."""

    text: str
    guard: str = ""


class TemplateLayout:
    """Renders by the template itself and encodes the whole text. Threads may share it.

    A caller's text never becomes a control token. A text that holds a control token's name gets the ids of its
    characters instead, and the template sees the name interrupted.

    Args:
        tokenizer: The base's tokenizer; it is copied.
        text_format: The base's chat template.

    Attributes:
        end_tokens: How many ids stand after the text of a response that is read.
        written_end: The control token that the template writes after an answer; None if it writes none.

    Raises:
        UnusableTemplate: The template is not valid.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TemplateFormat) -> None:
        self._format = text_format
        self._template = ChatTemplate(text_format.template, text_format.names)
        self._guarded = GuardedTokenizer(tokenizer, _harmless_renderings(self._template))
        after = self._after_answers()
        self._written_after = len(after)
        self.end_tokens = len(self._read([0, *after])) - 1
        self.written_end = next((i for i in after if i in self._guarded.control_ids), None)

    def with_ends(self, ends: tuple[int, ...]) -> TemplateLayout:
        """Return this layout with other ids that end an answer. It shares the tokenizer, whose copy takes long."""
        changed = copy.copy(self)
        changed._format = replace(self._format, ends=ends)
        return changed

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text of a caller may have."""
        return self._guarded.control_ids

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of each conversation with what invites its answer."""
        return self.encode([(_messages(conversation), True) for conversation in conversations])

    def rows(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return a row for each response of each group: the whole rendering, split where it leaves the invited one."""
        found: list[list[Row] | RefusedConversation] = [[] for _ in groups]
        pending: list[tuple[int, list[_Rendered]]] = []
        for place, (conversation, responses) in enumerate(groups):
            try:
                whole = [self._render(m, invite=False) for m in _answered(conversation, responses)]
            except RefusedByTemplate as error:
                found[place] = RefusedConversation(str(error))
                continue
            try:
                invited = self._render(_messages(conversation), invite=True)
            except RefusedByTemplate:
                invited = _Rendered("")
            pending.append((place, self._divided([invited, *whole])))
        ids = iter(self._encode([part for _, parts in pending for part in parts]))
        for place, parts in pending:
            found[place] = self._rows([next(ids) for _ in parts])
        return found

    def _divided(self, texts: list[_Rendered]) -> list[_Rendered]:
        """Return what the texts share, and the rest of each."""
        if any(text.guard for text in texts):
            return [_Rendered(""), *texts]
        head, rest = self._guarded.divide([text.text for text in texts])
        return [_Rendered(head), *map(_Rendered, rest)]

    def _rows(self, parts: Sequence[list[int] | RefusedConversation]) -> list[Row] | RefusedConversation:
        """Join the ids of a group's parts: the shared one, the rest of the invited prompt, and of each answered one."""
        read: list[list[int]] = []
        for part in parts:
            if isinstance(part, RefusedConversation):
                return part
            read.append(part)
        head, invited, *rest = read
        prompt = head + invited
        rows = []
        for tail in rest:
            ids = self._read(head + tail)
            shared = min(len(head) + _shared(invited, tail), len(ids) - 1)
            rows.append(Row(prompt if shared == len(prompt) else ids[:shared], ids[shared:]))
        return rows

    def completions(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return the invited prompt, and the response as the template writes it up to its end."""
        prompts = self.prompts([conversation for conversation, _ in groups])
        found: list[list[Row] | RefusedConversation] = []
        for (conversation, responses), prompt in zip(groups, prompts, strict=True):
            if isinstance(prompt, RefusedConversation):
                found.append(prompt)
                continue
            try:
                found.append([Row(prompt, self._written(conversation, text, prompt)) for text in responses])
            except (RefusedByTemplate, ForgedControlToken) as error:
                found.append(RefusedConversation(str(error)))
        return found

    def encode(self, wanted: Sequence[tuple[Messages, bool]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of messages, each with a choice whether the rendering invites an answer."""
        rendered: list[_Rendered | RefusedConversation] = []
        for messages, invite in wanted:
            try:
                rendered.append(self._render(messages, invite=invite))
            except RefusedByTemplate as error:
                rendered.append(RefusedConversation(str(error)))
        ids = iter(self._encode([each for each in rendered if isinstance(each, _Rendered)]))
        return [next(ids) if isinstance(each, _Rendered) else each for each in rendered]

    def _encode(self, texts: Sequence[_Rendered]) -> list[list[int] | RefusedConversation]:
        found: list[list[int] | RefusedConversation] = [[] for _ in texts]
        plain = [place for place, text in enumerate(texts) if not text.guard]
        try:
            encoded = self._guarded.encode([texts[place].text for place in plain])
            for place, ids in zip(plain, encoded, strict=True):
                found[place] = ids
            left = [place for place, text in enumerate(texts) if text.guard]
        except ForgedControlToken:
            left = list(range(len(texts)))
        for place in left:
            try:
                (found[place],) = self._guarded.encode([texts[place].text], texts[place].guard)
            except ForgedControlToken as error:
                found[place] = RefusedConversation(str(error))
        return found

    def _render(self, messages: Messages, *, invite: bool, guard: str = "") -> _Rendered:
        """Render messages; if they hold names of control tokens, these are interrupted by a guard.

        A template that rewrites texts could make a name of a harmless text. Its rendering is used only if it has the
        same control tokens as that of interrupted texts.

        Raises:
            RefusedByTemplate: The template does not render the messages.
        """
        rewrites = self._template.may_rewrite
        if not guard and not rewrites and all(map(self._guarded.is_harmless, _texts(messages))):
            return _Rendered(self._template.render(messages, invite=invite))
        guard = guard or unused_private_character([self._format.template, *_texts(messages)])
        mark = self._guarded.interrupt if rewrites else self._guarded.mark
        marked = [_marked(message, lambda text: mark(text, guard)) for message in messages]
        safe = self._template.render(marked, invite=invite)
        whole = self._template.render(messages, invite=invite)
        if self._guarded.names_in(whole) == self._guarded.names_in(safe) and self._stays_apart(messages):
            return _Rendered(whole)
        return _Rendered(safe, guard)

    def _stays_apart(self, messages: Messages) -> bool:
        """Whether no text holds a part of a name at an end, where the template could make it whole."""
        return self._template.may_rewrite or all(map(self._guarded.is_harmless, _texts(messages)))

    def _read(self, ids: list[int]) -> list[int]:
        """Leave out what a reward model does not read at the end, or put what it reads in its place."""
        if self._format.closing is not None:
            return [*ids[: len(ids) - self._written_after], *self._format.closing]
        if self._format.unread is None:
            return ids
        end = len(ids)
        while end > 1 and ids[end - 1] == self._format.unread:
            end -= 1
        return ids[:end]

    def _written(self, conversation: Sequence[Turn], response: str, prompt: Sequence[int]) -> list[int]:
        """Return the ids of a response that follows the prompt, with its end."""
        asked, (answered,) = _messages(conversation), _answered(conversation, [response])
        guard = unused_private_character([self._format.template, *_texts(answered)])
        whole = self._render(answered, invite=False, guard=guard).text
        invited = self._render(asked, invite=True, guard=guard).text
        if whole.startswith(invited):
            rest = whole[len(invited) :]
        else:  # the template writes a past answer otherwise than it asks for one
            rest = self._guarded.mark(response, guard)
            whole = invited + rest
        (ids,) = self._guarded.encode([whole], guard)
        shared = len(prompt)
        if list(ids[:shared]) != list(prompt):  # the response would merge with the end of the prompt
            (ids,), shared = self._guarded.encode([rest], guard), 0
        said = ids[shared:]
        stop = next((i for i, each in enumerate(said) if each in self._format.ends), None)
        return [*said, self._format.ends[0]] if stop is None else said[: stop + 1]

    def _after_answers(self) -> list[int]:
        """Return the ids that the template writes after an answer."""
        asked = Turn("user", "a")
        first, second = self.encode([(_messages((asked, Turn("assistant", text))), False) for text in ("b", "c d")])
        if isinstance(first, RefusedConversation) or isinstance(second, RefusedConversation):
            return []
        return first[len(first) - _shared(first[::-1], second[::-1]) :]


def _checked(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (kind is str and not value):
        raise TypeError(f"a text format has {value!r} where {kind.__name__} stands")
    return value


def _messages(conversation: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in conversation]


def _answered(conversation: Sequence[Turn], responses: Sequence[str]) -> list[list[dict[str, str]]]:
    """Return the messages of the conversation with each response."""
    asked = _messages(conversation)
    return [[*asked, {"role": "assistant", "content": text}] for text in responses]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids at the start are the same."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _texts(value: Any) -> Iterable[str]:
    """Return every string in a message, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _marked(message: Mapping[str, Any], mark: Callable[[str], str]) -> dict[str, Any]:
    """Mark all texts of a message; its role is not a caller's text."""
    return {key: value if key == "role" else _mapped(value, mark) for key, value in message.items()}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(each, change) for each in value]
    return value


def _harmless_renderings(template: ChatTemplate) -> list[str]:
    """Return renderings that show which control tokens the template puts together for each role."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    conversations = [said, *([{"role": role, "content": "d"}, *said] for role in ROLES)]
    found = []
    for conversation in conversations:
        for invite in (False, True):
            try:
                found.append(template.render(conversation, invite=invite))
            except RefusedByTemplate:
                continue
    return found
