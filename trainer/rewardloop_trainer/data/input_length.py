"""Chooses how many tokens a model gets of a prompt and its response, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewardloop_trainer.data.base_text import rotary_limit

# A server runs a sequence of the full length when it loads a version, and the cost of attention grows with its square.
DEFAULT_REWARD_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class InputLength:
    """The most tokens of prompt and response together, and the reason, for the manifest and the log."""

    tokens: int
    reason: str


def input_length(
    config: Any,
    tokenizer: Any,
    longest: int,
    *,
    wanted: int | None,
    default: int | None = None,
    setting: str = "--max-length",
) -> InputLength:
    """Choose the length: what the user wants, or the default, or what the base reads if that is less.

    Args:
        config: The base's Hugging Face configuration.
        tokenizer: Its Hugging Face tokenizer.
        longest: The most tokens that the base reads.
        wanted: The user's choice; None if there is none.
        default: Used without a choice; None if that is all that the base reads.
        setting: The name of the setting that chooses, for the reason.
    """
    chosen = wanted or default or longest
    base_reads = f"the {longest:,} that the base reads ({_bound(config, tokenizer, longest)})"
    if chosen < longest:
        why = f"set by {setting}" if wanted else f"the default; {setting} changes it"
        return InputLength(chosen, f"{chosen:,}, of {base_reads}: {why}")
    reason = f"{longest:,}, all of {base_reads}"
    if wanted and wanted > longest:
        reason += f", and fewer than the {wanted:,} of {setting}"
    return InputLength(longest, reason)


def _bound(config: Any, tokenizer: Any, longest: int) -> str:
    """Name what holds the base to ``longest`` tokens."""
    of_text = config.get_text_config(decoder=True)
    if tokenizer.model_max_length == longest:
        return "model_max_length of its tokenizer"
    if rotary_limit(of_text) == longest:
        return "the length up to which its rotary embeddings do not depend on the batch"
    if getattr(of_text, "max_position_embeddings", None) or getattr(of_text, "n_positions", None):
        return "its positions"
    return "assumed, as its config names no bound"
