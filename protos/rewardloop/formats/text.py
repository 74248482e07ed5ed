"""How a prompt and a response become token ids: one piece of code for training and serving.

A pair is laid out as ``prompt_ids + response_ids``. The prompt's ids do not depend on the response, so a group
of k responses pays for its prompt once, and role markers are token ids of the format, never text: a user who
writes ``<|im_end|>`` or ``[SEP]`` gets those characters tokenised as plain text.
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
    """One turn of a conversation; ``role`` is one of `ROLES`."""

    role: str
    content: str


def turns(prompt: common_pb2.Prompt) -> tuple[Turn, ...]:
    """The prompt's turns, oldest first; plain text is one user turn."""
    if prompt.WhichOneof("content") == "text":
        return (Turn("user", prompt.text),)
    return tuple(Turn(m.role, m.content) for m in prompt.conversation.messages)


@dataclass(frozen=True, slots=True)
class Affix:
    """Token ids put before and after a turn's own tokens."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()


class UnusableChatTemplate(ValueError):
    """The chat template is not a plain concatenation of turns, so it cannot be expressed as a `TextFormat`."""


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The layout of a conversation in token ids.

    ``opening``: ids that start a conversation without a system turn; one with a system turn starts with that
    turn's prefix. ``system``, ``user``, ``assistant``: the affixes of past turns.
    ``response``: prefix = what invites the answer (part of the prompt), suffix = what ends it.
    ``segment_ids``: the model takes token_type_ids, 0 for the prompt and 1 for the response. ``pad``: padding id.
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
        """BERT-type layout ``[CLS] turn [SEP] turn [SEP] response [SEP]``; RoBERTa-type names work too.

        ``segment_ids`` marks the response with token type 1; leave it off for trunks whose pretraining never
        saw segment 1 (sentence-transformers such as MiniLM).
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
        """Plain layout for a decoder without a chat template: ``User: ...\\nAssistant: ...<eos>``."""

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
        """Read a Hugging Face chat template off its own renderings.

        ``render(messages, add_generation_prompt)`` is the tokenizer's ``apply_chat_template(tokenize=False)``.
        Raises `UnusableChatTemplate` when a turn renders differently by its position.
        """

        def pieces(*roles: str, invite: bool = False) -> list[str]:
            """What stands before, between and after the contents of turns with these roles."""
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
        except Exception as error:  # templates signal "no system role" by any exception they like
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
        """Raises KeyError or TypeError on a malformed mapping."""
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
    """One (prompt, response) sequence: ids, segment ids (or None), whether it was shortened, the tokens that the whole
    response has, shortened or not, and how many of ``ids`` are the prompt's."""

    ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool
    response_tokens: int = 1
    prompt_tokens: int = 0


class Encoder:
    """Turns conversations and responses into ids. Safe to share between threads.

    ``max_length`` bounds a whole sequence in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TextFormat, max_length: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # special tokens in a caller's text are plain text
        self.tokenizer = tokenizer
        self.format = text_format
        self.max_length = max_length

    def prompt_ids(self, conversation: Sequence[Turn]) -> list[int]:
        """Ids of everything before the response; not shortened."""
        return self._prompt(conversation, [self._text_ids(turn.content) for turn in conversation])

    def groups(self, groups: Sequence[tuple[Sequence[Turn], Sequence[str]]]) -> list[list[Encoded]]:
        """For each conversation and its responses their sequences, in order: one call of the tokenizer for all."""
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
        """Ids of a complete response with what ends it; not shortened."""
        return [*self._text_ids(response), *self.format.response.suffix]

    def response_ids_batch(self, responses: Sequence[str]) -> list[list[int]]:
        """`response_ids` of many."""
        encoded = self.tokenizer.encode_batch_fast(list(responses), add_special_tokens=False)
        return [[*e.ids, *self.format.response.suffix] for e in encoded]

    def pair(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Encoded:
        """The sequence that a reward model reads, at most ``max_length`` long.

        A pair that does not fit first loses the middle of its prompt, down to a quarter of the length, then the
        tail of the response before its end marker: the model always sees how the prompt opens, how it asks for
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
        """The text of response ids; special tokens are left out."""
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
