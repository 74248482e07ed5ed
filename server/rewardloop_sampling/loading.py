"""Loads a policy's weights, in the same way in the worker and in the export that tries them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

# Names of the field in configs that bounds the positions.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def load_served(directory: Path, device: torch.device) -> Any:
    """Load a causal language model for answering. Raises what transformers and torch raise for a broken directory.

    On a CPU half precision is slower than float32, so it is loaded in float32. On a GPU the stored type is kept.
    """
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.eval().requires_grad_(False).to(device)


def most_positions(config: Any) -> int | None:
    """Return the most tokens of prompt and answer together, or None if the model has no bound.

    Longrope has two sets of frequencies, and the longest row of a batch decides which set all rows get. Within the
    original context that is always the short set, so the bound is there.
    """
    text = config.get_text_config(decoder=True)
    bounds = [value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *_mappings(ropes.values())):
        if rope.get("rope_type") == "longrope":
            bounds.append(int(rope["original_max_position_embeddings"]))
    return min(bounds, default=None)


def _mappings(values: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)]
