"""Tokenizer and longest input of a Hugging Face base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rewardloop_reward.unusable_base import UnusableBase as UnusableBase
from rewardloop_sampling.loading import most_positions

_UNBOUNDED = 1_000_000  # tokenizers say "no limit" with a huge number
# Encoders whose position ids start after the padding id.
_POSITIONS_AFTER_PADDING = frozenset(
    (
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "mpnet", "longformer"),
        *("roberta-prelayernorm", "xmod", "ibert", "luke", "esm"),
    )
)
_UNKNOWN_LENGTH = 512
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


def longest_input(config: Any, tokenizer: Any) -> int:
    """Most tokens that the model can read, by its positions, rotary frequencies and tokenizer; 512 if none tells.

    An attention window is no bound, because masks have windows.
    """
    bounds = []
    if (positions := most_positions(config)) is not None:
        offset = config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0
        bounds.append(positions - offset)
    if tokenizer.model_max_length < _UNBOUNDED:
        bounds.append(int(tokenizer.model_max_length))
    return min(bounds, default=_UNKNOWN_LENGTH)
