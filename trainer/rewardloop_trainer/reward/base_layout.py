"""The text layout of a reward model on a Hugging Face base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rewardloop.formats.text import Affix, TextFormat
from rewardloop_trainer.data.base_text import text_format_of
from rewardloop_trainer.data.layout_check import LayoutCheck, check_dialogues, check_pairs
from rewardloop_trainer.reward.model import RewardModel


def reward_layout(tokenizer: Any, model: RewardModel, segment_ids: bool | None = None) -> TextFormat:
    """Return the layout that a new reward model reads.

    A Hugging Face classifier on a decoder takes its score before trailing padding tokens, even where its padding token
    is the one that ends an answer. A model with such a head therefore reads no answer's end that is padding.

    Args:
        tokenizer: The base's Hugging Face tokenizer.
        model: The model, as `RewardModel.from_base` made it.
        segment_ids: Mark the response with token type 1; None: in a sequence classifier with segments,
            if its tokenizer does so.

    Raises:
        UnusableBase: If the tokenizer lacks tokens that the layout needs.
    """
    if segment_ids is None:
        segment_ids = not model.has_new_heads and _has_segments(model) and _marks_pairs(tokenizer)
    found = text_format_of(tokenizer, is_decoder=model.is_decoder, segment_ids=segment_ids, whole_answers=True)
    suffix, pad = found.response.suffix, _unread(model)
    while suffix and suffix[-1] == pad:
        suffix = suffix[:-1]
    return replace(found, response=Affix(found.response.prefix, suffix))


def check_reward_layout(tokenizer: Any, model: RewardModel, text_format: TextFormat) -> LayoutCheck | None:
    """Compare a reward model's layout with its authors'; None if the base has no layout to compare with.

    Call it before an `Encoder` is made on the tokenizer: it has to read special tokens as such.
    """
    if model.is_decoder:
        if not tokenizer.chat_template:
            return None
        return check_dialogues(tokenizer, text_format, pad=_unread(model), stops=False)
    if model.has_new_heads:
        return None
    return check_pairs(tokenizer, text_format, has_segments=_has_segments(model))


def _unread(model: RewardModel) -> int | None:
    """The id that the class of the model's head does not read at the end of a sequence, if there is one."""
    if not model.is_decoder or not model.skips_padding or model.config.pad_token_id is None:
        return None
    return int(model.config.pad_token_id)


def _has_segments(model: RewardModel) -> bool:
    return int(getattr(model.config, "type_vocab_size", 0)) > 1


def _marks_pairs(tokenizer: Any) -> bool:
    """Whether the tokenizer gives the second text of a pair token type 1."""
    return 1 in tokenizer("a", "b").get("token_type_ids", ())
