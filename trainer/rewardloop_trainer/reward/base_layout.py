"""The text layout of a reward model on a Hugging Face base."""

from __future__ import annotations

from typing import Any

from rewardloop_trainer.data.base_layout import BaseLayout, LayoutChoice, decoder_layout, encoder_layout
from rewardloop_trainer.reward.model import RewardModel


def reward_layout(
    tokenizer: Any, model: RewardModel, *, segment_ids: bool | None = None, choice: LayoutChoice = "exact"
) -> BaseLayout:
    """Return the layout that a new reward model reads.

    A Hugging Face classifier on a decoder takes its score before trailing padding tokens, even where its padding token
    is the one that ends an answer. A model with such a head therefore reads no answer's end that is padding.

    Args:
        tokenizer: The base's Hugging Face tokenizer.
        model: The model, as `RewardModel.from_base` made it.
        segment_ids: Mark the response with token type 1; None: in a sequence classifier with segments,
            if its tokenizer does so.
        choice: "plain" takes a plain layout where the base's own is not to be had.

    Raises:
        UnusableBase: If the layout would differ from the base's own, or the tokenizer lacks tokens that it needs.
    """
    if model.is_decoder:
        return decoder_layout(tokenizer, "read", unread=_unread(model), choice=choice)
    has_segments = int(getattr(model.config, "type_vocab_size", 0)) > 1
    if segment_ids is None:
        segment_ids = not model.has_new_heads and has_segments and _marks_pairs(tokenizer)
    return encoder_layout(
        tokenizer,
        segment_ids=segment_ids,
        has_segments=has_segments,
        is_trained=not model.has_new_heads,
        choice=choice,
    )


def _unread(model: RewardModel) -> int | None:
    """The id that the class of the model's head does not read at the end of a sequence, if there is one."""
    if not model.skips_padding or model.config.pad_token_id is None:
        return None
    return int(model.config.pad_token_id)


def _marks_pairs(tokenizer: Any) -> bool:
    """Whether the tokenizer gives the second text of a pair token type 1."""
    return 1 in tokenizer("a", "b").get("token_type_ids", ())
