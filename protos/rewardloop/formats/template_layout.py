"""The template layout: the authors' chat template is rendered, and the whole text is encoded by their tokenizer.

The ids are those of Hugging Face's ``apply_chat_template(tokenize=True)``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tokenizers import Tokenizer

from rewardloop.formats.chat_template import ChatTemplate, RefusedByTemplate
from rewardloop.formats.control_tokens import ForgedControlToken, unused_private_character
from rewardloop.formats.guarded_template import Asked, GuardedTemplate, Messages, Rendered, Tools, ToolsLeftOut
from rewardloop.formats.text import Group, NoPlaceForTools, RefusedConversation, Row, Steps, Turn

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
        steps: How a reward model reads an answer as steps; None if it reads it as a whole. Their token is an added
            token of the tokenizer.
    """

    template: str
    names: Mapping[str, Any] = field(default_factory=dict)
    pad: int = 0
    ends: tuple[int, ...] = ()
    unread: int | None = None
    closing: tuple[int, ...] | None = None
    steps: Steps | None = None

    @property
    def segment_ids(self) -> bool:
        """False: no model with a chat template takes token_type_ids."""
        return False

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand in the format itself."""
        return (self.pad, *self.ends, *(self.closing or ()), *((self.steps.token,) if self.steps else ()))

    def layout(self, tokenizer: Tokenizer) -> TemplateLayout:
        """Return what lays texts out with this tokenizer. Raises `UnusableTemplate`."""
        return TemplateLayout(tokenizer, self)

    @property
    def held(self) -> int:
        """See `Format`."""
        return 0

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
            **({"steps": self.steps.to_json()} if self.steps is not None else {}),
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
            steps=Steps.from_json(data.get("steps")),
        )


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
        ValueError: Steps end with a token that is no added token of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TemplateFormat) -> None:
        self._format = text_format
        step_end = _step_end(tokenizer, text_format.steps)
        self._template = GuardedTemplate(ChatTemplate(text_format.template, text_format.names), tokenizer, step_end)
        self._guarded = self._template.tokenizer
        after = self._after_answers()
        self._end_text = self._text_after_answers()
        closing = text_format.closing
        self.end_tokens = 1 if text_format.steps else len(closing or self._read([0, *after])[1:])
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

    @property
    def tool_markers(self) -> frozenset[str]:
        """Names of the control tokens that the assistant's own text may hold."""
        return self._guarded.tool_markers

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of each conversation with what invites its answer."""
        return self._encoded([(Asked.of(conversation), True) for conversation in conversations])

    def rows(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return a row for each response of each group: the whole rendering, split where it leaves the invited one."""
        found: list[list[Row] | RefusedConversation] = [[] for _ in groups]
        pending: list[tuple[int, list[Rendered]]] = []
        for place, (conversation, responses) in enumerate(groups):
            asked = Asked.of(conversation)
            try:
                answered = [asked.answered(self._answer(text)) for text in responses]
                self._template.check_tools(answered[0], invite=False)
                whole = [self._without_end(self._template.render(each, invite=False)) for each in answered]
            except RefusedByTemplate as error:
                found[place] = _refused(error)
                continue
            try:
                invited = self._template.render(asked, invite=True)
            except RefusedByTemplate:
                invited = Rendered("")
            pending.append((place, self._divided([invited, *whole])))
        ids = iter(self._encode([part for _, parts in pending for part in parts]))
        for place, parts in pending:
            found[place] = self._rows([next(ids) for _ in parts])
        return found

    def _divided(self, texts: list[Rendered]) -> list[Rendered]:
        """Return what the texts share, and the rest of each."""
        guards = {text.guard for text in texts if text.guard}
        guard = guards.pop() if guards else ""
        if guards or (guard and any(guard in text.text for text in texts if not text.guard)):
            return [Rendered(""), *texts]
        head, rest = self._guarded.divide([text.text for text in texts])
        return [Rendered(head, guard), *(Rendered(each, guard) for each in rest)]

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
            if self._format.steps is not None and self._format.steps.token not in tail:
                return RefusedConversation("the chat template leaves the ends of an answer's steps out")
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
                asked = Asked.of(conversation)
                found.append([Row(prompt, self._written(asked, text, prompt)) for text in responses])
            except (RefusedByTemplate, ForgedControlToken) as error:
                found.append(_refused(error))
        return found

    def encode(
        self, wanted: Sequence[tuple[Messages, bool]], tools: Tools = ()
    ) -> list[list[int] | RefusedConversation]:
        """Return the ids of messages, each with a choice whether the rendering invites an answer."""
        return self._encoded([(Asked(messages, tools), invite) for messages, invite in wanted])

    def _encoded(self, wanted: Sequence[tuple[Asked, bool]]) -> list[list[int] | RefusedConversation]:
        rendered: list[Rendered | RefusedConversation] = []
        for asked, invite in wanted:
            try:
                self._template.check_tools(asked, invite=invite)
                rendered.append(self._template.render(asked, invite=invite))
            except RefusedByTemplate as error:
                rendered.append(_refused(error))
        ids = iter(self._encode([each for each in rendered if isinstance(each, Rendered)]))
        return [next(ids) if isinstance(each, Rendered) else each for each in rendered]

    def _encode(self, texts: Sequence[Rendered]) -> list[list[int] | RefusedConversation]:
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

    def _without_end(self, answered: Rendered) -> Rendered:
        """Leave out what the template writes after an answer, if something else is read in its place.

        It is left out of the text, because the tokenizer may merge it with the end of the answer.
        """
        if self._format.closing is None or self._format.steps is not None:
            return answered
        return Rendered(answered.text.removesuffix(self._end_text), answered.guard)

    def _answer(self, text: str) -> str | tuple[str, ...]:
        return text if self._format.steps is None else self._format.steps.parts(text)

    def _read(self, ids: list[int]) -> list[int]:
        """Leave out what a reward model does not read at the end, or put what it reads in its place."""
        if (steps := self._format.steps) is not None:
            end = len(ids) - ids[::-1].index(steps.token)
            return [steps.written if i == steps.token else i for i in ids[:end]]
        if self._format.closing is not None:
            return [*ids, *self._format.closing]
        if self._format.unread is None:
            return ids
        end = len(ids)
        while end > 1 and ids[end - 1] == self._format.unread:
            end -= 1
        return ids[:end]

    def _written(self, asked: Asked, response: str, prompt: Sequence[int]) -> list[int]:
        """Return the ids of a response that follows the prompt, with its end."""
        answered = asked.answered(response)
        guard = unused_private_character([self._format.template, *(text for text, _ in answered.texts())])
        whole = self._template.render(answered, invite=False, guard=guard).text
        invited = self._template.render(asked, invite=True, guard=guard).text
        if whole.startswith(invited):
            rest = whole[len(invited) :]
        else:  # the template writes a past answer otherwise than it asks for one
            rest = self._template.guarded(guard, response, "assistant")
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
        asked = Asked.of([Turn("user", "a")])
        first, second = self._encoded([(asked.answered(text), False) for text in ("b", "c d")])
        if isinstance(first, RefusedConversation) or isinstance(second, RefusedConversation):
            return []
        return first[len(first) - _shared(first[::-1], second[::-1]) :]

    def _text_after_answers(self) -> str:
        """Return what the template writes after an answer."""
        asked = Asked.of([Turn("user", "a")])
        try:
            first, second = (self._template.render(asked.answered(text), invite=False).text for text in ("b", "c d"))
        except RefusedByTemplate:
            return ""
        return _shared_end(first, second)


def _checked(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (kind is str and not value):
        raise TypeError(f"a text format has {value!r} where {kind.__name__} stands")
    return value


def _step_end(tokenizer: Tokenizer, steps: Steps | None) -> str:
    if steps is None:
        return ""
    added = tokenizer.get_added_tokens_decoder()
    if steps.token not in added:
        raise ValueError(f"the token {steps.token} at the end of steps is no added token of the tokenizer")
    return added[steps.token].content


def _shared_end(one: str, other: str) -> str:
    """Return the characters at the end that are the same."""
    length = _shared(one[::-1], other[::-1])
    return one[len(one) - length :]


def _refused(error: ValueError) -> RefusedConversation:
    return NoPlaceForTools() if isinstance(error, ToolsLeftOut) else RefusedConversation(str(error))


def _shared(one: Sequence[int] | str, other: Sequence[int] | str) -> int:
    """Return how many ids or characters at the start are the same."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])
