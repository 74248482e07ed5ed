"""Turns a prompt and a response into token ids. Training and serving share this code.

A pair is ``prompt_ids + response_ids``. The prompt's ids do not depend on the response, so a group of k responses
tokenizes and runs its prompt once. Role markers are token ids of the format and never text: the characters of
``<|im_end|>`` or ``[SEP]`` in a caller's text are tokenized as plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from rewardloop.v1 import common_pb2

ROLES = ("system", "user", "assistant")

Messages: TypeAlias = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. ``role`` is one of `ROLES`."""

    role: str
    content: str


def turns(prompt: common_pb2.Prompt) -> tuple[Turn, ...]:
    """Return the turns of a prompt, oldest first. Plain text is one user turn."""
    if prompt.WhichOneof("content") == "text":
        return (Turn("user", prompt.text),)
    return tuple(Turn(m.role, m.content) for m in prompt.conversation.messages)


@dataclass(frozen=True, slots=True)
class Affix:
    """The token ids that stand before and after a turn's own tokens."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


class UnusableChatTemplate(ValueError):
    """Raised for a chat template that is not a plain concatenation of turns, which a `TextFormat` cannot express."""


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The layout of a conversation in token ids.

    Attributes:
        opening: Ids that start a conversation without a system turn. A conversation with one starts with the prefix of
            ``system`` instead.
        system: Affixes of a system turn.
        user: Affixes of a user's turn.
        assistant: Affixes of an earlier turn of the assistant.
        response: The prefix asks for the answer and belongs to the prompt; the suffix ends the answer.
        segment_ids: The model takes token_type_ids: 0 for the prompt and 1 for the response.
        pad: Id of the padding token.
    """

    opening: tuple[int, ...]
    system: Affix
    user: Affix
    assistant: Affix
    response: Affix
    segment_ids: bool
    pad: int

    @classmethod
    def for_encoder(cls, tokenizer: Tokenizer, *, segment_ids: bool = False) -> TextFormat:
        """Return an encoder's layout: ``[CLS] turn [SEP] turn [SEP] response [SEP]``, or RoBERTa's names for these.

        Args:
            tokenizer: Its special tokens are used.
            segment_ids: Mark the response with token type 1. Leave it off for trunks whose pretraining had no segment
                1, such as the MiniLM of sentence-transformers.

        Raises:
            ValueError: The tokenizer has none of the special tokens.
        """
        cls_id = _first_id(tokenizer, ("[CLS]", "<s>", "<cls>"))
        sep_id = _first_id(tokenizer, ("[SEP]", "</s>", "<sep>", "<eos>"))
        pad_id = _first_id(tokenizer, ("[PAD]", "<pad>"))
        turn = Affix((), (sep_id,))
        return cls((cls_id,), Affix((cls_id,), (sep_id,)), turn, turn, turn, segment_ids, pad_id)

    @classmethod
    def for_decoder(
        cls, tokenizer: Tokenizer, *, eos_id: int, bos_id: int | None = None, pad_id: int | None = None
    ) -> TextFormat:
        """Return a layout for a decoder without a chat template: ``User: ...\\nAssistant: ...<eos>``."""

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        newline = ids("\n")
        opening = () if bos_id is None else (bos_id,)
        return cls(
            opening=opening,
            system=Affix(opening, newline),
            user=Affix(ids("User: "), newline),
            assistant=Affix(ids("Assistant:"), (eos_id, *newline)),
            response=Affix(ids("Assistant:"), (eos_id,)),
            segment_ids=False,
            pad=eos_id if pad_id is None else pad_id,
        )

    @classmethod
    def from_chat_template(
        cls, tokenizer: Tokenizer, render: Callable[[Messages, bool], str], *, eos_id: int, pad_id: int
    ) -> TextFormat:
        """Derive the layout of a Hugging Face chat template from what it renders.

        Args:
            tokenizer: Encodes the rendered text.
            render: The tokenizer's ``apply_chat_template(tokenize=False)``, called with the messages and
                ``add_generation_prompt``.
            eos_id: The id that ends an answer.
            pad_id: Id of the padding token.

        Raises:
            UnusableChatTemplate: The rendering of a turn depends on its position.
        """

        def pieces(*roles: str, invite: bool = False) -> list[str]:
            """Return the texts before, between and after the contents of turns with these roles."""
            contents = [f"\u0001{i}\u0001" for i in range(len(roles))]
            said = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            rest, parts = render(said, invite), []
            for content in contents:
                before, found, rest = rest.partition(content)
                if not found:
                    raise UnusableChatTemplate("the chat template drops or rewrites a turn")
                parts.append(before)
            return [*parts, rest]

        start, user_end = pieces("user")
        invite = _without_prefix(pieces("user", invite=True)[1], user_end)
        _, user_to_answer, answer_end = pieces("user", "assistant")
        user_start = _without_prefix(pieces("user", "assistant", "user")[2], answer_end)
        if not start.endswith(user_start):
            raise UnusableChatTemplate("the chat template opens the first turn differently")
        opening = start[: len(start) - len(user_start)]
        try:
            system_start, system_to_user, _ = pieces("system", "user")
        except Exception as error:  # templates raise exceptions of any type for a role that they do not have
            if isinstance(error, UnusableChatTemplate) or "template" in type(error).__name__.lower():
                system_start, system_to_user = start, user_end + user_start
            else:
                raise
        if not system_to_user.endswith(user_start):
            raise UnusableChatTemplate("the chat template opens a turn after a system turn differently")

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids) if text else ()

        tokenizer.encode_special_tokens = False
        end_ids = ids(answer_end)
        stop = end_ids[: end_ids.index(eos_id) + 1] if eos_id in end_ids else (*end_ids, eos_id)
        return cls(
            opening=ids(opening),
            system=Affix(ids(system_start), ids(system_to_user[: len(system_to_user) - len(user_start)])),
            user=Affix(ids(user_start), ids(user_end)),
            assistant=Affix(ids(_without_prefix(user_to_answer, user_end)), end_ids),
            response=Affix(ids(invite), stop),
            segment_ids=False,
            pad=pad_id,
        )

    def to_json(self) -> dict[str, Any]:
        def affix(a: Affix) -> dict[str, list[int]]:
            return {"prefix": list(a.prefix), "suffix": list(a.suffix)}

        return {
            "opening": list(self.opening),
            **{name: affix(getattr(self, name)) for name in (*ROLES, "response")},
            "segment_ids": self.segment_ids,
            "pad": self.pad,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TextFormat:
        """Return the layout that `to_json` wrote. Raises KeyError or TypeError for a malformed mapping."""
        affixes = {
            name: Affix(tuple(data[name]["prefix"]), tuple(data[name]["suffix"])) for name in (*ROLES, "response")
        }
        return cls(
            opening=tuple(data["opening"]),
            segment_ids=bool(data["segment_ids"]),
            pad=int(data["pad"]),
            **affixes,
        )


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


class Encoder:
    """Turns conversations and responses into token ids. Threads may share it.

    Args:
        tokenizer: Its truncation and padding are turned off.
        text_format: The layout of a conversation.
        max_length: Most tokens of a whole sequence.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TextFormat, max_length: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # special tokens in a caller's text become plain text
        self.tokenizer = tokenizer
        self.format = text_format
        self.max_length = max_length

    def prompt_ids(self, conversation: Sequence[Turn]) -> list[int]:
        """Return the ids of everything before the response, without shortening."""
        return self._prompt(conversation, [self._text_ids(turn.content) for turn in conversation])

    def groups(self, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[list[Encoded]]:
        """Return the sequences of each conversation with its responses, in order, after one call of the tokenizer."""
        texts = [text for turns, responses in groups for text in (*(turn.content for turn in turns), *responses)]
        ids = iter(e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        suffix = self.format.response.suffix
        encoded = []
        for conversation, responses in groups:
            prompt = self._prompt(conversation, [next(ids) for _ in conversation])
            encoded.append([self.pair(prompt, [*next(ids), *suffix]) for _ in responses])
        return encoded

    def _prompt(self, conversation: Sequence[Turn], contents: Sequence[list[int]]) -> list[int]:
        affixes = {"system": self.format.system, "user": self.format.user, "assistant": self.format.assistant}
        ids = [] if conversation and conversation[0].role == "system" else list(self.format.opening)
        for turn, content in zip(conversation, contents, strict=True):
            affix = affixes[turn.role]
            ids += affix.prefix
            ids += content
            ids += affix.suffix
        ids += self.format.response.prefix
        return ids

    def response_ids(self, response: str) -> list[int]:
        """Return the ids of a complete response and of its end, without shortening."""
        return [*self._text_ids(response), *self.format.response.suffix]

    def response_ids_batch(self, responses: Sequence[str]) -> list[list[int]]:
        """Return the `response_ids` of each response."""
        encoded = self.tokenizer.encode_batch_fast(list(responses), add_special_tokens=False)
        return [[*e.ids, *self.format.response.suffix] for e in encoded]

    def pair(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Encoded:
        """Return the sequence that a reward model reads, with at most ``max_length`` tokens.

        A pair that does not fit first loses the middle of its prompt, down to a quarter of the length, and then the
        tail of the response before its end marker. So the model always sees the start of the prompt, the request for
        the answer, and an end.
        """
        prompt, response = list(prompt_ids), list(response_ids)
        truncated = len(prompt) + len(response) > self.max_length
        if truncated:
            keep = min(len(prompt), max(self.max_length - len(response), self.max_length // 4))
            prompt = prompt[: keep // 2] + prompt[len(prompt) - (keep - keep // 2) :]
            room = self.max_length - len(prompt)
            if len(response) > room:
                end = len(self.format.response.suffix)
                response = response[: room - end] + response[len(response) - end :]
        types = [0] * len(prompt) + [1] * len(response) if self.format.segment_ids else None
        return Encoded(prompt + response, types, truncated, max(1, len(response_ids)), len(prompt))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of response ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _first_id(tokenizer: Tokenizer, names: Iterable[str]) -> int:
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    raise ValueError(f"the tokenizer has none of the special tokens {', '.join(names)}")


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise UnusableChatTemplate("the chat template renders a turn differently by its position")
    return text[len(prefix) :]
