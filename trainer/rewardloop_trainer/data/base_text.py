"""Tokenizer and longest input of a Hugging Face base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

_UNBOUNDED = 1_000_000  # tokenizers say "no limit" with a huge number
# Encoders whose position ids start after the padding id.
_POSITIONS_AFTER_PADDING = frozenset(
    (
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "mpnet", "longformer"),
        *("roberta-prelayernorm", "xmod", "ibert", "luke", "esm"),
    )
)
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
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
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
