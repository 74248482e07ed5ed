"""Turns conversations and responses into token ids of bounded length. Training and serving share this code.

How a conversation is laid out is the model's text format: affixes around each turn (`affix_layout`) or the authors'
chat template (`template_layout`). Whatever a caller writes, no text of theirs becomes a control token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from tokenizers import Tokenizer

from rewardloop.formats.messages import TOOLS
from rewardloop.formats.messages import Turn as Turn
from rewardloop.formats.messages import turns as turns


@dataclass(frozen=True, slots=True)
class Steps:
    """How a reward model reads an answer as steps, each of which ends with a token.

    Attributes:
        token: Id of that token, which no text gives at such a place.
        separator: What stands between two steps in the text of an answer. It is left out.
        is_marked: The graph combines the scores of all steps, so it must know their ends. Such an end is written as
            -1 - ``token``.
    """

    token: int
    separator: str
    is_marked: bool

    @property
    def written(self) -> int:
        """The number in a sequence that marks the end of a step."""
        return -1 - self.token if self.is_marked else self.token

    def parts(self, answer: str) -> tuple[str, ...]:
        """Return the steps of an answer, at least one. Those of white space alone are left out."""
        return tuple(part for part in answer.split(self.separator) if part.strip()) or (answer,)

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds of them."""
        return {"token": self.token, "separator": self.separator, "is_marked": self.is_marked}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Steps | None:
        """Return what `to_json` wrote; None for None. Raises KeyError, TypeError or ValueError for another form."""
        if data is None:
            return None
        if not isinstance(data["separator"], str) or not data["separator"]:
            raise ValueError("the separator of steps is no text")
        return cls(int(data["token"]), data["separator"], bool(data["is_marked"]))


# A conversation with responses to it.
Group: TypeAlias = tuple[Sequence[Turn], Sequence[str]]


class RefusedConversation(ValueError):
    """Raised, or returned in place of a result, if a model's text format has no form for a conversation."""


class NoPlaceForTools(RefusedConversation):
    """Raised, or returned in place of a result, if a model's text format would leave out tools or calls of them."""

    def __init__(self) -> None:
        super().__init__("the model's template has no place for tool calls")


@dataclass(frozen=True, slots=True)
class Row:
    """The ids of one conversation with one response, before any shortening.

    Attributes:
        prompt: Ids that do not depend on the response.
        response: The ids after them; at least one.
    """

    prompt: list[int]
    response: list[int]


class Layout(Protocol):
    """Lays out texts as one text format does. Results are in the order of the arguments; a conversation that the format
    cannot express gets a `RefusedConversation` in place of its result. Threads may share a layout.

    Attributes:
        end_tokens: How many ids stand after the text of a response that is read.
    """

    end_tokens: int

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of each conversation with what invites its answer."""

    def rows(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return the sequences that a reward model reads: a row for each response of each group."""

    def completions(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return the sequences that a policy writes: ids as by `prompts`, then those of each response to its end."""


class Format(Protocol):
    """A model's text format, as it stands in its manifest."""

    @property
    def pad(self) -> int:
        """Id of the padding token."""

    @property
    def segment_ids(self) -> bool:
        """Whether the model takes token_type_ids: 0 for the prompt and 1 for the response."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids of which each ends an answer."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand in the format itself."""

    @property
    def steps(self) -> Steps | None:
        """How an answer is read as steps; None if it is read as a whole."""

    def layout(self, tokenizer: Tokenizer) -> Layout:
        """Return what lays texts out with this tokenizer."""

    def answer(self, sampled: Sequence[int]) -> list[int]:
        """Return the ids of a sampled answer that ended, without its end."""

    @property
    def held(self) -> int:
        """How many ids at an answer's end may belong to its end, before the one that ends it has come."""

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds of the format."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence of a prompt and a response.

    Attributes:
        ids: Token ids.
        token_type_ids: Segment of each token, or None if the model takes none.
        truncated: The sequence was shortened.
        response_tokens: Tokens of the whole response, before any shortening.
        prompt_tokens: How many of ``ids`` are the prompt's.
    """

    ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool
    response_tokens: int = 1
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that leaves room for an answer.

    Attributes:
        ids: Token ids, with what invites the answer.
        dropped_turns: How many of the oldest turns are left out.
        is_cut: Tokens in the middle of the turns that remain are left out too.
    """

    ids: list[int]
    dropped_turns: int = 0
    is_cut: bool = False

    @property
    def truncated(self) -> bool:
        """Whether anything is left out."""
        return self.dropped_turns > 0 or self.is_cut


class Encoder:
    """Turns conversations and responses into token ids. Threads may share it.

    A conversation that is too long loses whole turns first, the oldest before the others, each time up to the next turn
    of the user. Tools, system turns at the start and the latest turns stay. If these alone are too long, the middle of
    their tokens is left out.

    Args:
        tokenizer: Its truncation and padding are turned off.
        text_format: The layout of a conversation.
        max_length: Most tokens of a whole sequence.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: Format, max_length: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.format = text_format
        self.max_length = max_length
        self._layout = text_format.layout(tokenizer)

    def groups(self, groups: Sequence[Group]) -> list[list[Encoded] | RefusedConversation]:
        """Return the sequences that a reward model reads of each conversation with its responses, in order.

        A pair that does not fit first loses of its prompt, down to a quarter of the length, and then the tail of the
        response before its end marker. So the model always sees the start of the prompt, the request for the answer,
        and an end.
        """
        return [
            rows
            if isinstance(rows, RefusedConversation)
            else [self._pair(conversation, text, row) for text, row in zip(responses, rows, strict=True)]
            for (conversation, responses), rows in zip(groups, self._layout.rows(groups), strict=True)
        ]

    def pair(self, conversation: Sequence[Turn], response: str) -> Encoded:
        """Return the sequence of one response as `groups` does. Raises `RefusedConversation`."""
        ((encoded,),) = (_accepted(rows) for rows in self.groups([(conversation, [response])]))
        return encoded

    def prompt_ids(self, conversation: Sequence[Turn]) -> list[int]:
        """Return the ids from which a policy answers, without shortening. Raises `RefusedConversation`."""
        return _accepted(self._layout.prompts([conversation])[0])

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | None]:
        """Return the `prompt_ids` of each conversation, None if the text format has no form for it."""
        found = self._layout.prompts(conversations)
        return [None if isinstance(ids, RefusedConversation) else ids for ids in found]

    def reads(self, conversations: Sequence[Sequence[Turn]]) -> list[bool]:
        """Return for each conversation whether the text format has a form for it with an answer."""
        rows = self._layout.rows([(conversation, ["a"]) for conversation in conversations])
        return [not isinstance(each, RefusedConversation) for each in rows]

    def fit_prompt(self, conversation: Sequence[Turn], room: int) -> FittedPrompt:
        """Return the ids from which a policy answers, at most ``room`` of them.

        Raises:
            RefusedConversation: The text format has no form for the conversation.
        """
        whole = self.prompt_ids(conversation)
        if len(whole) <= room:
            return FittedPrompt(whole)
        dropped, shorter = self._fewer_turns(conversation, whole, room, self.prompt_ids)
        return FittedPrompt(_without_middle(shorter, room), dropped, len(shorter) > room)

    def completions(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return what a policy reads and writes, without shortening: `prompt_ids`, and each response with its end."""
        return self._layout.completions(groups)

    def completion(self, conversation: Sequence[Turn], response: str) -> Row:
        """Return what a policy reads and writes of one response. Raises `RefusedConversation`."""
        ((row,),) = (_accepted(rows) for rows in self.completions([(conversation, [response])]))
        return row

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of response ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _pair(self, conversation: Sequence[Turn], text: str, row: Row) -> Encoded:
        prompt, response = row.prompt, row.response
        truncated = len(prompt) + len(response) > self.max_length
        if truncated:
            room = max(self.max_length - len(response), self.max_length // 4)
            if len(prompt) > room:
                prompt, response = self._shortened(conversation, text, row, room)
            room = self.max_length - len(prompt)
            if len(response) > room:
                end = self._layout.end_tokens
                response = response[: room - end] + response[len(response) - end :]
        types = [0] * len(prompt) + [1] * len(response) if self.format.segment_ids else None
        return Encoded(prompt + response, types, truncated, max(1, len(row.response)), len(prompt))

    def _shortened(self, conversation: Sequence[Turn], text: str, whole: Row, room: int) -> tuple[list[int], list[int]]:
        """Return the prompt with at most ``room`` ids, and the response after it."""
        rows = {len(conversation): whole}

        def prompt_of(turns: Sequence[Turn]) -> list[int]:
            (rows[len(turns)],) = _accepted(self._layout.rows([(turns, [text])])[0])
            return rows[len(turns)].prompt

        dropped, prompt = self._fewer_turns(conversation, whole.prompt, room, prompt_of)
        return _without_middle(prompt, room), rows[len(conversation) - dropped].response

    def _fewer_turns(
        self, conversation: Sequence[Turn], whole: list[int], room: int, ids_of: _Ids
    ) -> tuple[int, list[int]]:
        """Leave out as few of the oldest turns as fit.

        Returns:
            How many turns are left out, and the ids of the others, more than ``room`` if the latest do not fit.
        """
        kept = _system_turns(conversation)
        cuts = [i for i in _exchanges(conversation) if i > kept]
        if not cuts:
            return 0, whole
        shorter: dict[int, list[int]] = {}

        def length(cut: int) -> int:
            shorter[cut] = ids_of([*conversation[:kept], *conversation[cut:]])
            return len(shorter[cut])

        try:
            place = min(bisect_left(cuts, True, key=lambda cut: length(cut) <= room), len(cuts) - 1)
            cut = cuts[place]
            if cut not in shorter:
                length(cut)
        except RefusedConversation:  # by a template that wants its first turns
            return 0, whole
        return cut - kept, shorter[cut]


_T = TypeVar("_T")


class _Ids(Protocol):
    def __call__(self, conversation: Sequence[Turn], /) -> list[int]: ...


def _accepted(found: _T | RefusedConversation) -> _T:
    if isinstance(found, RefusedConversation):
        raise found
    return found


def _system_turns(conversation: Sequence[Turn]) -> int:
    """Return how many turns at the start, the list of tools included, are the product's and not the conversation's."""
    return next((i for i, turn in enumerate(conversation) if turn.role not in (TOOLS, "system", "developer")), 0)


def _exchanges(conversation: Sequence[Turn]) -> list[int]:
    """Return the indices of the user's turns that follow a turn of somebody else."""
    return [
        i for i, turn in enumerate(conversation) if turn.role == "user" and i > 0 and conversation[i - 1].role != "user"
    ]


def _without_middle(ids: list[int], room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    return ids[: room // 2] + ids[len(ids) - (room - room // 2) :]
