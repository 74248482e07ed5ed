"""The rules of a checkpoint's generation config as fields of a vLLM request, or why vLLM cannot follow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardloop_sampling.generation_rules import GenerationRules, UnsupportedGeneration

# Fields of a generation config that vLLM has no like of, or applies in another order, and values that do nothing.
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "sequence_bias": (None, {}),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "top_h": (None,),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}


def vllm_fields(rules: GenerationRules) -> Mapping[str, Any]:
    """Return the fields that make vLLM follow the rules. Raises UnsupportedGeneration."""
    config, fields = rules.config, dict[str, Any]()
    found = [f"{name}={value!r}" for name in _REFUSED if (value := getattr(config, name, None)) not in _REFUSED[name]]
    if found:
        raise UnsupportedGeneration(
            f"the generation config sets {', '.join(found)}, which vLLM does not do as torch does: serve this policy "
            "with torch"
        )
    if config.top_k:
        fields["top_k"] = config.top_k
    if config.repetition_penalty:
        fields["repetition_penalty"] = config.repetition_penalty
    if config.min_new_tokens and rules.end_ids:
        fields["min_tokens"] = config.min_new_tokens
    return fields
