"""Chooses the text layout of a Hugging Face base: what its authors' tokenizer and chat template make of texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from rewardloop.formats.affix_layout import LATER_SYSTEM, Affix, Messages, TextFormat
from rewardloop.formats.chat_template import ChatTemplate, UnusableTemplate
from rewardloop.formats.template_layout import TemplateFormat, TemplateLayout
from rewardloop.formats.text import Layout, RefusedConversation, Turn
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.data.layout_check import LayoutCheck, Use, check_dialogues, check_pairs, copy_of

# Whether a base is refused if its own layout cannot be had, or gets a plain one.
LayoutChoice: TypeAlias = Literal["exact", "plain"]
_PLAIN = "plain, as asked"


@dataclass(frozen=True, slots=True)
class BaseLayout:
    """A base's text layout.

    Attributes:
        text_format: The layout.
        note: How it compares with the authors' own, for the manifest.
    """

    text_format: TextFormat | TemplateFormat
    note: str


def decoder_layout(
    tokenizer: Any, use: Use, *, unread: int | None = None, choice: LayoutChoice = "exact"
) -> BaseLayout:
    """Return a decoder's layout.

    It is the affixes of the chat template's turns if these give the ids of every probe, which is the fastest. Else the
    template itself is rendered. A base without a chat template gets the plain layout ``User: ...\\nAssistant: ...``.

    Args:
        tokenizer: A Hugging Face tokenizer with a fast form.
        use: Whether a reward model reads the texts or a policy writes them.
        unread: An id that does not count at the end of what is read, because the model's class reads before it.
        choice: "plain" takes the plain layout whatever the tokenizer has.

    Raises:
        UnusableBase: If the tokenizer has no end token, or if no layout gives the ids of its chat template.
    """
    if tokenizer.eos_token_id is None:
        raise UnusableBase("the tokenizer has no end-of-sequence token")
    eos_id = int(tokenizer.eos_token_id)
    pad_id = eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    if choice == "plain" or not tokenizer.chat_template:
        plain = TextFormat.for_decoder(copy_of(tokenizer), eos_id=eos_id, bos_id=tokenizer.bos_token_id, pad_id=pad_id)
        note = _PLAIN if tokenizer.chat_template else "plain: the base has no chat template"
        return BaseLayout(_without_unread(plain, unread), note)
    tried = ""
    for text_format, layout, kind in _of_template(tokenizer, use, eos_id=eos_id, pad_id=pad_id, unread=unread):
        check = check_dialogues(tokenizer, layout, use=use, unread=unread)
        if not _reads_texts(layout):
            raise UnusableBase("its chat template leaves out what a user says; --layout plain takes a plain layout")
        if not check.difference:
            return BaseLayout(text_format, f"exact, by {kind}: {_compared(check)}")
        tried = check.difference
    raise UnusableBase(
        f"the layout of texts would differ from the base's own: {tried}; --layout plain takes a plain layout instead"
    )


def encoder_layout(
    tokenizer: Any,
    *,
    segment_ids: bool,
    has_segments: bool,
    is_trained: bool,
    choice: LayoutChoice = "exact",
) -> BaseLayout:
    """Return an encoder's layout: that of its tokenizer's pairs, or one of our own if the tokenizer marks no pairs.

    Args:
        tokenizer: A Hugging Face tokenizer with a fast form.
        segment_ids: Mark the response with token type 1.
        has_segments: Whether the model distinguishes segments.
        is_trained: Whether its head was trained on its tokenizer's pairs, with which the layout is then compared.
        choice: "plain" accepts a layout that differs from them.

    Raises:
        UnusableBase: If the tokenizer lacks tokens that a layout needs, or the layout differs from its pairs.
    """
    try:
        found = _pair_format(tokenizer, segment_ids) or TextFormat.for_encoder(
            tokenizer.backend_tokenizer, segment_ids=segment_ids
        )
    except ValueError as error:
        raise UnusableBase(str(error)) from error
    if not is_trained:
        return BaseLayout(found, "the tokenizer's pairs, not compared: no head was trained on them")
    check = check_pairs(tokenizer, found, has_segments=has_segments)
    if not check.difference:
        return BaseLayout(found, f"exact: {_compared(check)}")
    if choice == "plain":
        return BaseLayout(found, f"{_PLAIN}: {check.difference}")
    raise UnusableBase(
        f"the layout of texts would differ from the base's own: {check.difference}; --layout plain accepts this"
    )


def _reads_texts(layout: Layout) -> bool:
    """Whether other texts get other ids."""
    rows = layout.prompts([[Turn("user", text)] for text in ("a", "b c")])
    return isinstance(rows[0], RefusedConversation) or rows[0] != rows[1]


def _compared(check: LayoutCheck) -> str:
    refused = f", and both refuse {', '.join(check.refused)}" if check.refused else ""
    without = f", and the template has no place for {', '.join(check.no_place)}" if check.no_place else ""
    return f"{check.equal} probes have the ids that the base's tokenizer gives them{refused}{without}"


def _of_template(
    tokenizer: Any, use: Use, *, eos_id: int, pad_id: int, unread: int | None
) -> Iterator[tuple[TextFormat | TemplateFormat, Layout, str]]:
    """Yield the formats to try, the fastest first, each with its layout and name.

    Raises `UnusableBase` for a template that is not valid.
    """

    def render(messages: Messages, add_generation_prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))

    try:
        source = str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, and none of them is the default
        raise UnusableBase(f"its chat template cannot be chosen: {error}") from error
    try:
        template_itself = ChatTemplate(source)
        if not template_itself.may_rewrite and not template_itself.looks_into_texts:  # else affixes could differ
            affixes = TextFormat.from_chat_template(copy_of(tokenizer), render, eos_id=eos_id, pad_id=pad_id)
            if use == "read":
                affixes = replace(affixes, response=Affix(affixes.response.prefix, affixes.assistant.suffix))
            if template_itself.reads_tools:
                template, _ = _template_format(tokenizer, eos_id=eos_id, pad_id=pad_id, unread=unread)
                affixes = replace(affixes, template=template)
            affixes = _without_unread(affixes, unread)
            yield affixes, affixes.layout(copy_of(tokenizer)), "affixes"
    except UnusableTemplate as error:
        raise UnusableBase(str(error)) from error
    except Exception:  # a template is code: it may fail in any way, and is then no concatenation of turns
        pass
    try:
        yield *_template_format(tokenizer, eos_id=eos_id, pad_id=pad_id, unread=unread), "its template"
    except UnusableTemplate as error:
        raise UnusableBase(str(error)) from error


def _template_format(
    tokenizer: Any, *, eos_id: int, pad_id: int, unread: int | None
) -> tuple[TemplateFormat, TemplateLayout]:
    found = TemplateFormat(tokenizer.get_chat_template(), dict(tokenizer.special_tokens_map), pad_id, (), unread)
    layout = found.layout(tokenizer.backend_tokenizer)
    written = layout.written_end
    ends = (eos_id,) if written is None or written == eos_id else (written, eos_id)
    return replace(found, ends=ends), layout.with_ends(ends)


def _without_unread(text_format: TextFormat, unread: int | None) -> TextFormat:
    suffix = text_format.response.suffix
    while suffix and suffix[-1] == unread:
        suffix = suffix[:-1]
    return replace(text_format, response=Affix(text_format.response.prefix, suffix))


def _pair_format(tokenizer: Any, segment_ids: bool) -> TextFormat | None:
    """Read an encoder's layout off its tokenizer's encoding of a pair; None if that has no tokens but the texts'."""
    pair = tokenizer("a", "b")
    sides = pair.sequence_ids(0)
    if 0 not in sides or 1 not in sides or None not in sides or tokenizer.pad_token_id is None:
        return None
    first, second = sides.index(0), sides.index(1)
    first_end, second_end = second - sides[:second][::-1].index(0), len(sides) - sides[::-1].index(1)
    ids: tuple[int, ...] = tuple(pair["input_ids"])
    opening, turn = ids[:first], Affix((), ids[first_end:second])
    system, response = Affix(opening, turn.suffix), Affix((), ids[second_end:])
    later = ((LATER_SYSTEM, turn),)
    return TextFormat(opening, system, turn, turn, response, segment_ids, int(tokenizer.pad_token_id), later)
