"""Compares a base's text layout with its authors': the chat template of a decoder, the pair encoding of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from rewardloop.formats.text import Encoder, TextFormat, Turn

_SHOWN = 3  # tokens on each side of a difference
_QUIET = {"verbose": False}  # no warning that a probe is longer than the model reads
_LONG = "A paragraph of several words, repeated until it is long. " * 60
_CODE = "def f(x):\n\tif x:\n        return {'a': [1, 2]}\n\n\n    # done\n"
_UNICODE = "Grüße, 日本語 \u00a0🙂 e\u0301 \u200dשלום"
_DIALOGUES: dict[str, tuple[tuple[str, str], ...]] = {
    "single turn": (("user", "Why is the sky blue?"), ("assistant", "Light scatters.")),
    "several turns": (
        ("user", "Hello."),
        ("assistant", "Good morning!"),
        ("user", "And now?"),
        ("assistant", "It is noon."),
    ),
    "system": (("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")),
    "system and several turns": (
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "Because."),
        ("user", "Really?"),
        ("assistant", "Yes."),
    ),
    "empty system": (("system", ""), ("user", "Why?"), ("assistant", "Because.")),
    "outer white space": (("user", "  Why? \n"), ("assistant", " Because.  \n")),
    "newlines first": (("user", "\n\nWhy?"), ("assistant", "\nBecause.")),
    "unicode": (("user", _UNICODE), ("assistant", _UNICODE[::-1])),
    "code": (("user", f"Explain:\n{_CODE}"), ("assistant", f"```python\n{_CODE}```")),
    "long": (("user", _LONG), ("assistant", _LONG)),
}


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """What a comparison of probes found.

    Attributes:
        equal: Number of probes with the same ids, before the first one that differs.
        skipped: Names of the probes that the template itself refuses.
        difference: The first probe that differs, where, and the tokens of both sides; empty if none does.
    """

    equal: int
    skipped: tuple[str, ...]
    difference: str


def check_dialogues(tokenizer: Any, text_format: TextFormat, *, pad: int | None, stops: bool) -> LayoutCheck:
    """Compare a decoder's layout with `apply_chat_template` on dialogues that end with an answer.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        text_format: The layout.
        pad: An id that does not count at the end of a dialogue, because the model's class reads before it.
        stops: The layout ends with the token that ends an answer; what the template puts after it does not count.
    """
    encoder = _encoder(tokenizer, text_format)
    equal, skipped = 0, []
    for name, dialogue in _DIALOGUES.items():
        messages = [{"role": role, "content": content} for role, content in dialogue]
        try:
            theirs = list(
                tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, tokenizer_kwargs=_QUIET)
            )
        except TemplateError:
            skipped.append(name)
            continue
        *before, (_, answer) = dialogue
        ours = encoder.prompt_ids([Turn(role, content) for role, content in before]) + encoder.response_ids(answer)
        if stops and theirs[: len(ours)] == ours:
            theirs = ours
        if difference := _difference(tokenizer, name, _without_end(ours, pad), _without_end(theirs, pad)):
            return LayoutCheck(equal, tuple(skipped), difference)
        equal += 1
    return LayoutCheck(equal, tuple(skipped), "" if equal else "the chat template refuses every probe")


def check_pairs(tokenizer: Any, text_format: TextFormat, *, has_segments: bool) -> LayoutCheck:
    """Compare the layout of a cross-encoder with its tokenizer's encoding of a pair.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text_format: The layout.
        has_segments: Whether the model distinguishes segments, so that the ids of segments are compared too.
    """
    encoder = _encoder(tokenizer, text_format)
    equal = 0
    for name, dialogue in _DIALOGUES.items():
        if len(dialogue) != 2:
            continue
        (_, prompt), (_, response) = dialogue
        ((ours,),) = encoder.groups([([Turn("user", prompt)], [response])])
        theirs = tokenizer(prompt, response, **_QUIET)
        difference = _difference(tokenizer, name, ours.ids, list(theirs["input_ids"]))
        none = [0] * len(ours.ids)
        if not difference and has_segments and (ours.token_type_ids or none) != theirs.get("token_type_ids", none):
            difference = f"probe {name!r}: the segment ids differ"
        if difference:
            return LayoutCheck(equal, (), difference)
        equal += 1
    return LayoutCheck(equal, (), "")


def _encoder(tokenizer: Any, text_format: TextFormat) -> Encoder:
    """Return an encoder on a copy, because an encoder changes how its tokenizer reads special tokens."""
    return Encoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), text_format, 1_000_000)


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
