"""The affix layout: every turn's own tokens between a fixed prefix and a fixed suffix of token ids.

Role markers are token ids of the format and never text: the characters of ``<|im_end|>`` or ``[SEP]`` in a caller's
text are tokenized as plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from rewardloop.formats.control_tokens import GuardedTokenizer, can_be_forged
from rewardloop.formats.either_layout import EitherLayout
from rewardloop.formats.messages import TOOLS
from rewardloop.formats.template_layout import TemplateFormat
from rewardloop.formats.text import Group, NoPlaceForTools, RefusedConversation, Row, Steps, Turn

Messages: TypeAlias = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")
_OTHER_ROLES = ("developer", "tool")
LATER_SYSTEM = "later_system"


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
        others: Affixes of the turns of other roles that the model has, such as tool, and of a system turn that is not
            the first one, under `LATER_SYSTEM`.
        template: The chat template, for conversations with tools, calls of them, or names, which affixes cannot
            express; None if the model has no template that reads these. Conversations with tools or calls are then
            refused, and names are not read.
        steps: How a reward model reads an answer as steps; None if it reads it as a whole.
    """

    opening: tuple[int, ...]
    system: Affix
    user: Affix
    assistant: Affix
    response: Affix
    segment_ids: bool
    pad: int
    others: tuple[tuple[str, Affix], ...] = ()
    template: TemplateFormat | None = None
    steps: Steps | None = None

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
        system = Affix((cls_id,), (sep_id,))
        return cls((cls_id,), system, turn, turn, turn, segment_ids, pad_id, ((LATER_SYSTEM, turn),))

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
            others=((LATER_SYSTEM, Affix((), newline)),),
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

        pieces = partial(_pieces, render)
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

        def affix_of(role: str) -> Affix | None:
            try:
                _, before, after, _ = pieces("user", role, "user")
                start = _without_prefix(before, user_end)
            except Exception:  # as above: the template has no such role
                return None
            return Affix(ids(start), ids(after[: len(after) - len(user_start)])) if after.endswith(user_start) else None

        end_ids = ids(answer_end)
        if eos_id not in end_ids and _special_ids(tokenizer).intersection(end_ids):
            raise UnusableChatTemplate("the chat template ends answers with another token than the tokenizer's")
        stop = end_ids[: end_ids.index(eos_id) + 1] if eos_id in end_ids else (*end_ids, eos_id)
        return cls(
            opening=ids(opening),
            system=Affix(ids(system_start), ids(system_to_user[: len(system_to_user) - len(user_start)])),
            user=Affix(ids(user_start), ids(user_end)),
            assistant=Affix(ids(_without_prefix(user_to_answer, user_end)), end_ids),
            response=Affix(ids(invite), stop),
            segment_ids=False,
            pad=pad_id,
            others=tuple(
                (LATER_SYSTEM if role == "system" else role, affix)
                for role in ("system", *_OTHER_ROLES)
                if (affix := affix_of(role)) is not None
            ),
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids of which each ends an answer."""
        return self.response.suffix[-1:]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand in the format itself."""
        affixes = (self.system, self.user, self.assistant, self.response, *dict(self.others).values())
        of_affixes = (i for affix in affixes for i in (*affix.prefix, *affix.suffix))
        more = (*(self.template.ids if self.template else ()), *((self.steps.token,) if self.steps else ()))
        return (self.pad, *self.opening, *of_affixes, *more)

    def layout(self, tokenizer: Tokenizer) -> AffixLayout | EitherLayout:
        """Return what lays texts out with this tokenizer. Raises `UnusableTemplate`."""
        if self.template is None:
            return AffixLayout(tokenizer, self)
        by_template = self.template.layout(tokenizer)  # before affixes change the tokenizer
        return EitherLayout(AffixLayout(tokenizer, self), by_template)

    def answer(self, sampled: Sequence[int]) -> list[int]:
        """Return the ids of a sampled answer that ended, without its end."""
        suffix = self.response.suffix
        return list(sampled[: -len(suffix)] if tuple(sampled[-len(suffix) :]) == suffix else sampled[:-1])

    @property
    def held(self) -> int:
        """See `Format`."""
        return max(0, len(self.response.suffix) - 1)

    def to_json(self) -> dict[str, Any]:
        def affix(a: Affix) -> dict[str, list[int]]:
            return {"prefix": list(a.prefix), "suffix": list(a.suffix)}

        return {
            "opening": list(self.opening),
            **{name: affix(getattr(self, name)) for name in (*_ROLES, "response")},
            "segment_ids": self.segment_ids,
            "pad": self.pad,
            **({"others": {role: affix(a) for role, a in self.others}} if self.others else {}),
            **({"template": self.template.to_json()} if self.template is not None else {}),
            **({"steps": self.steps.to_json()} if self.steps is not None else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TextFormat:
        """Return the layout that `to_json` wrote. Raises KeyError, TypeError or ValueError for a malformed mapping."""

        def affix(a: Mapping[str, Any]) -> Affix:
            return Affix(tuple(a["prefix"]), tuple(a["suffix"]))

        affixes = {name: affix(data[name]) for name in (*_ROLES, "response")}
        return cls(
            opening=tuple(data["opening"]),
            segment_ids=bool(data["segment_ids"]),
            pad=int(data["pad"]),
            others=tuple((str(role), affix(a)) for role, a in data.get("others", {}).items()),
            steps=Steps.from_json(data.get("steps")),
            template=TemplateFormat.from_json(data["template"]) if data.get("template") is not None else None,
            **affixes,
        )


class AffixLayout:
    """Lays out conversations by the affixes of their turns. Threads may share it.

    A conversation with tools or calls of them is refused. Names of speakers are not read.

    Args:
        tokenizer: Special tokens in a text become plain text for it from now on.
        text_format: The affixes.
    """

    def __init__(self, tokenizer: Tokenizer, text_format: TextFormat) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._guarded = None
        if can_be_forged(tokenizer, text_format.ids):
            added = tokenizer.get_added_tokens_decoder()
            self._guarded = GuardedTokenizer(tokenizer, [added[i].content for i in text_format.ids if i in added])
        self._format = text_format
        self._affixes = {"system": text_format.system, "user": text_format.user, "assistant": text_format.assistant}
        self._affixes |= dict(text_format.others)
        self.end_tokens = 1 if text_format.steps else len(text_format.response.suffix)

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | RefusedConversation]:
        """Return the ids of each conversation with the prefix of its answer."""
        ids = self._ids(turn.content for conversation in conversations for turn in conversation)
        return [self._prompt(conversation, ids) for conversation in conversations]

    def rows(self, groups: Sequence[Group]) -> list[list[Row] | RefusedConversation]:
        """Return a row for each response of each group."""
        said = {text: self._parts(text) for _, responses in groups for text in responses}
        contents = (turn.content for turns, _ in groups for turn in turns)
        ids = self._ids(itertools.chain(contents, *said.values()))
        suffix = self._format.response.suffix if self._format.steps is None else (self._format.steps.written,)

        def ids_of(response: str) -> list[int]:
            return list(itertools.chain.from_iterable((*ids[part], *suffix) for part in said[response]))

        found: list[list[Row] | RefusedConversation] = []
        for conversation, responses in groups:
            prompt = self._prompt(conversation, ids)
            if isinstance(prompt, RefusedConversation):
                found.append(prompt)
            else:
                found.append([Row(prompt, ids_of(text)) for text in responses])
        return found

    completions = rows  # an answer that is read and one that is written have the same ids

    def _parts(self, response: str) -> tuple[str, ...]:
        """Return the parts of a response that each end with what the layout writes after one."""
        return (response,) if self._format.steps is None else self._format.steps.parts(response)

    def _ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        distinct = list(dict.fromkeys(texts))
        if self._guarded is not None:
            return dict(zip(distinct, self._guarded.encode_plain(distinct), strict=True))
        encoded = self._tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        return {text: each.ids for text, each in zip(distinct, encoded, strict=True)}

    def _prompt(
        self, conversation: Sequence[Turn], contents: Mapping[str, list[int]]
    ) -> list[int] | RefusedConversation:
        ids = [] if conversation and conversation[0].role == "system" else list(self._format.opening)
        for place, turn in enumerate(conversation):
            if turn.tool_calls or turn.role == TOOLS:
                return NoPlaceForTools()
            later = place > 0 and turn.role == "system" and LATER_SYSTEM in self._affixes
            affix = self._affixes.get(LATER_SYSTEM if later else turn.role)
            if affix is None:
                return RefusedConversation(f"the model has no turns of the role {turn.role!r}")
            ids += affix.prefix
            ids += contents[turn.content]
            ids += affix.suffix
        ids += self._format.response.prefix
        return ids


def _pieces(render: Callable[[Messages, bool], str], *roles: str, invite: bool = False) -> list[str]:
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


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


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
