"""Tokenizer, text layout and longest input of a Hugging Face base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rewardloop.formats.text import Affix, Messages, TextFormat, UnusableChatTemplate

log = structlog.get_logger()
_UNBOUNDED = 1_000_000  # tokenizers say "no limit" with a huge number
_NAMED = 5  # tokens that an error names


def load_tokenizer(base: str | Path) -> Any:
    """Load the Hugging Face tokenizer of a base. Raises `UnusableBase` if it has none, or none with a fast form."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableBase(f"{base}: no usable tokenizer: {error}") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise UnusableBase(f"{base}: its tokenizer has no fast form (tokenizer.json)")
    return tokenizer


def text_format_of(
    tokenizer: Any, *, is_decoder: bool, segment_ids: bool = False, whole_answers: bool = False
) -> TextFormat:
    """The text layout to use with a base.

    An encoder's layout is that of its tokenizer's pairs, or one of our own if the tokenizer marks no pairs. A decoder's
    layout is its chat template, or the plain layout if it has none. A template that is more than a concatenation of
    turns is replaced by the plain layout, with a warning.

    Args:
        tokenizer: A Hugging Face tokenizer with a fast form.
        is_decoder: Whether the base is a decoder.
        segment_ids: Whether an encoder marks the response with token type 1.
        whole_answers: Whether a chat template's response ends with all that the template puts after it; otherwise it
            ends with the end-of-sequence token, as what a policy samples does.

    Raises:
        UnusableBase: If the tokenizer lacks tokens that the layout needs.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    if not is_decoder:
        try:
            return _pair_format(tokenizer, segment_ids) or TextFormat.for_encoder(backend, segment_ids=segment_ids)
        except ValueError as error:
            raise UnusableBase(str(error)) from error
    if tokenizer.eos_token_id is None:
        raise UnusableBase("the tokenizer has no end-of-sequence token")
    eos_id = int(tokenizer.eos_token_id)
    pad_id = eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    if tokenizer.chat_template:

        def render(messages: Messages, add_generation_prompt: bool) -> str:
            return str(
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            )

        try:
            found = TextFormat.from_chat_template(backend, render, eos_id=eos_id, pad_id=pad_id)
            if whole_answers:
                return replace(found, response=Affix(found.response.prefix, found.assistant.suffix))
            return found
        except (UnusableChatTemplate, TemplateError) as error:
            log.warning("replacing the chat template by the plain layout", reason=str(error))
    return TextFormat.for_decoder(backend, eos_id=eos_id, bos_id=tokenizer.bos_token_id, pad_id=pad_id)


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
    return TextFormat(opening, system, turn, turn, response, segment_ids, int(tokenizer.pad_token_id))


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Check that the model has an embedding for every token of its tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rows: Rows of the model's input embedding.

    Raises:
        UnusableBase: If a token's id is not below ``rows``. Such an id would make every run that contains it fail.
    """
    ids: dict[str, int] = tokenizer.get_vocab()  # with added and special tokens
    beyond = sorted((i, token) for token, i in ids.items() if i >= rows)
    if beyond:
        named = ", ".join(f"{token!r} ({i})" for i, token in beyond[:_NAMED])
        raise UnusableBase(
            f"the embedding has {rows} rows, and {len(beyond)} of its {len(ids)} tokens have ids beyond them: {named}"
            f"{', ...' if len(beyond) > _NAMED else ''}; resize the embedding (resize_token_embeddings) and train it"
        )


def longest_input(config: Any, tokenizer: Any, *, within_window: bool = True) -> int:
    """Most tokens that the model can read, by its positions, attention window and tokenizer; 512 if none tells.

    Args:
        config: The model's configuration.
        tokenizer: Its Hugging Face tokenizer.
        within_window: Whether inputs must not be longer than an attention window, because masks have no windows.
    """
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 512
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # position ids start after the padding id
    known = [int(positions)]
    if within_window and (window := attention_window(config)) is not None:
        known.append(window)
    if (limit := rotary_limit(config)) is not None:
        known.append(limit)
    if tokenizer.model_max_length < _UNBOUNDED:
        known.append(int(tokenizer.model_max_length))
    return min(known)


def rotary_limit(config: Any) -> int | None:
    """Tokens up to which the frequencies of rotary embeddings do not depend on the length; None if they never do.

    Beyond it (dynamic NTK, longrope), a text's frequencies would depend on the longest text beside it in a batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return int(config.max_position_embeddings) if rope.get("rope_type") == "dynamic" else None


class UnusableBase(ValueError):
    """Raised when a directory or hub id is not a model that can be used."""


def attention_window(config: Any) -> int | None:
    """Tokens up to which sliding-window attention equals plain causal attention; None if there is no window."""
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None
