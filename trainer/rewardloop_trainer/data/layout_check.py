"""Compares a base's text layout with its authors': the chat template of a decoder, the pair encoding of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tokenizers import Tokenizer

from rewardloop.formats.chat_template import ChatTemplate
from rewardloop.formats.messages import message_of, tools_of
from rewardloop.formats.text import Encoder, Format, Layout, NoPlaceForTools, RefusedConversation, Row, Turn
from rewardloop_trainer.data.layout_probes import PROBES, TOOL_PROBES

# Whether texts are read by a reward model or written by a policy.
Use: TypeAlias = Literal["read", "write"]

_UNBOUNDED = 1_000_000
_SHOWN = 3  # tokens on each side of a difference
_QUIET = {"verbose": False}  # no warning that a probe is longer than the model reads


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """What a comparison of probes found.

    Attributes:
        equal: Number of probes with the same ids, before the first one that differs.
        refused: Names of the probes that both the template and the layout refuse.
        no_place: Names of the probes whose tools or calls the template leaves out, which the layout refuses.
        difference: The first probe that differs, where, and the tokens of both sides; empty if none does.
    """

    equal: int
    refused: tuple[str, ...]
    difference: str
    no_place: tuple[str, ...] = ()


def check_dialogues(tokenizer: Any, layout: Layout, *, use: Use, unread: int | None = None) -> LayoutCheck:
    """Compare a decoder's layout with `apply_chat_template` on dialogues that end with an answer.

    What a reward model reads is compared whole. Of what a policy writes, the prompt that invites the answer is
    compared, and the answer up to its end if the template writes it after that prompt.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        layout: The layout.
        use: Whether the texts are read or written.
        unread: An id that does not count at the end of what is read, because the model's class reads before it.
    """
    equal = 0
    refused: list[str] = []
    no_place: list[str] = []
    reads_tools = ChatTemplate(str(tokenizer.get_chat_template())).reads_tools
    for name, dialogue in (PROBES | TOOL_PROBES if reads_tools else PROBES).items():
        *before, answer = dialogue
        (found,) = (layout.rows if use == "read" else layout.completions)([(before, [answer.content])])
        theirs = _by_template(tokenizer, dialogue, invite=False)
        asked = None if use == "read" else _by_template(tokenizer, before, invite=True)
        if isinstance(found, NoPlaceForTools):
            no_place.append(name)
            continue
        if theirs is None or (use == "write" and asked is None):
            if not isinstance(found, RefusedConversation):
                return LayoutCheck(
                    equal, tuple(refused), f"the template refuses probe {name!r}, and this layout does not"
                )
            refused.append(name)
            continue
        if isinstance(found, RefusedConversation):
            return LayoutCheck(equal, tuple(refused), f"probe {name!r}: {found}")
        (row,) = found
        ours, theirs = _comparable(row, theirs, asked, use, unread)
        if difference := _difference(tokenizer, name, ours, theirs):
            return LayoutCheck(equal, tuple(refused), difference)
        equal += 1
    none = "" if equal else "the chat template refuses every probe"
    return LayoutCheck(equal, tuple(refused), none, tuple(no_place))


def _comparable(
    row: Row, theirs: list[int], asked: list[int] | None, use: Use, unread: int | None
) -> tuple[list[int], list[int]]:
    """Return the parts of our ids and of the template's that must be equal."""
    ours = [*row.prompt, *row.response]
    if use == "read":
        return _without_end(ours, unread), _without_end(theirs, unread)
    if asked is None or theirs[: len(asked)] != asked:  # the template writes a past answer otherwise
        return list(row.prompt), asked or []
    if theirs[: len(ours)] == ours or theirs == ours[:-1]:  # a template may leave the end out
        return ours, ours
    return ours, theirs


def check_pairs(tokenizer: Any, text_format: Format, *, has_segments: bool) -> LayoutCheck:
    """Compare the layout of a cross-encoder with its tokenizer's encoding of a pair.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text_format: The layout.
        has_segments: Whether the model distinguishes segments, so that the ids of segments are compared too.
    """
    encoder = Encoder(copy_of(tokenizer), text_format, _UNBOUNDED)
    equal = 0
    for name, dialogue in PROBES.items():
        if len(dialogue) != 2:
            continue
        prompt, response = (turn.content for turn in dialogue)
        ours = encoder.pair([Turn("user", prompt)], response)
        theirs = tokenizer(prompt, response, **_QUIET)
        difference = _difference(tokenizer, name, ours.ids, list(theirs["input_ids"]))
        none = [0] * len(ours.ids)
        if not difference and has_segments and (ours.token_type_ids or none) != theirs.get("token_type_ids", none):
            difference = f"probe {name!r}: the segment ids differ"
        if difference:
            return LayoutCheck(equal, (), difference)
        equal += 1
    return LayoutCheck(equal, (), "")


def copy_of(tokenizer: Any) -> Tokenizer:
    """Return a copy of a Hugging Face tokenizer's fast form, because a layout changes how it reads special tokens."""
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def _by_template(tokenizer: Any, dialogue: Sequence[Turn], *, invite: bool) -> list[int] | None:
    """Return the ids that `apply_chat_template` gives a dialogue; None if the template refuses it."""
    tools, said = tools_of(dialogue)
    try:
        return list(
            tokenizer.apply_chat_template(
                [message_of(turn) for turn in said],
                tools=tools or None,
                add_generation_prompt=invite,
                tokenize=True,
                return_dict=False,
                tokenizer_kwargs=_QUIET,
            )
        )
    except Exception:  # a template is code: it may fail in any way that Jinja2 and Python have
        return None


def _without_end(ids: Sequence[int], pad: int | None) -> list[int]:
    kept = list(ids)
    while kept and kept[-1] == pad:
        kept.pop()
    return kept


def _difference(tokenizer: Any, name: str, ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Describe the first position at which ids differ; empty if they are the same."""
    if list(ours) == list(theirs):
        return ""
    shorter = min(len(ours), len(theirs))
    at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)

    def near(ids: Sequence[int]) -> str:
        """Each token by itself, because tokens may differ where their text does not."""
        return str([tokenizer.decode([i], skip_special_tokens=False) for i in ids[max(0, at - _SHOWN) : at + _SHOWN]])

    return f"probe {name!r} differs at token {at}: {near(ours)} in this layout, {near(theirs)} by the tokenizer"
