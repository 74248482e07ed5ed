"""Ends the answers that a token classifier reads with the token at which it scores a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.template_layout import TemplateFormat
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.heads.choice import HeadChoice


def with_step_end(
    tokenizer: Any, text_format: TextFormat | TemplateFormat, choice: HeadChoice
) -> TextFormat | TemplateFormat:
    """Return the layout whose answers end with the step token, if the score is that of an answer's last step.

    What the layout would put after an answer is left out: a decoder's score at the step token does not depend on it.

    Args:
        tokenizer: The base's Hugging Face tokenizer.
        text_format: The layout.
        choice: Which head the score is.

    Raises:
        UnusableBase: If the step token is not one token.
    """
    if choice.step_scores is None:
        return text_format
    step = (_id_of(tokenizer, choice.step_token),)
    if isinstance(text_format, TemplateFormat):
        return replace(text_format, closing=step)
    template = None if text_format.template is None else replace(text_format.template, closing=step)
    return replace(text_format, response=replace(text_format.response, suffix=step), template=template)


def _id_of(tokenizer: Any, named: str) -> int:
    """Return the id of a token that is named by its id, by its piece of the vocabulary, or by its text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if named.isdecimal() and int(named) in vocabulary.values():
        return int(named)
    text = named.replace("\\n", "\n")
    if text in vocabulary:
        return vocabulary[text]
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise UnusableBase(f"--step-token {named!r} is {len(ids)} tokens ({ids}), not one: name one of them by its id")
    return ids[0]
