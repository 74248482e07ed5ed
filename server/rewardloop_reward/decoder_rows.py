"""Runs a decoder of transformers on rows whose positions and attention are given.

A row may hold one sequence, or a prompt with several responses. Everything that the decoder computes from the place of
a token in its row is therefore computed from the token's position: windows of attention, and biases on distances.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING

Masks: TypeAlias = Tensor | dict[str, Tensor]

_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_SIZES = {_SLIDING: "sliding_window", _CHUNKED: "attention_chunk_size"}  # in a configuration, in tokens
_ALIBI = "build_alibi_tensor"  # maps a mask (B, S), heads and dtype to biases (B * heads, 1, S)
_ONE_AT_A_TIME = threading.RLock()  # threads may run such decoders at once, and it is replaced for all of them


def states_at(trunk: nn.Module, input_ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states.

    Args:
        trunk: A decoder's bare model.
        input_ids: (B, S).
        position_ids: (B, S).
        mask: (B or 1, 1, S, S), bool; True if the token of the third axis sees that of the fourth.

    Returns:
        (B, S, d).
    """
    whole = cast(Any, trunk)
    masks = _masks(whole.config, position_ids, mask, whole.get_input_embeddings().weight.dtype)
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": masks}
    if "position_ids" in inspect.signature(model_class(whole.config).forward).parameters:
        inputs["position_ids"] = position_ids
    with _bias_at(whole.config, position_ids):
        states: Tensor = whole(**inputs).last_hidden_state
    return states


def obstacles(config: Any) -> Sequence[str]:
    """What a decoder computes that positions and a mask do not determine; empty if it can be run on such rows."""
    found = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    found |= {kind for kinds in getattr(config, "attention_types", None) or () for kind in kinds[0]}  # GPT-Neo
    found -= {_FULL, *_SIZES, "attention", "global"}
    if getattr(config, "use_bidirectional_attention", False):
        found.add("bidirectional attention")
    parameters = inspect.signature(model_class(config).forward).parameters
    if not found and not ("attention_mask" in parameters and "create_causal_mask" in _source(config)):
        found.add("a mask of its own making")
    if not found and "position_ids" not in parameters and not hasattr(_module(config), _ALIBI):
        found.add("columns of its row instead of positions")
    return sorted(found)


def freeze_rotations(trunk: nn.Module) -> None:
    """Keep the frequencies of rotary embeddings that would depend on the longest row of a batch.

    They are those of the length that the model was trained with (`base_text.longest_input`).
    """
    for module in trunk.modules():
        if getattr(module, "rope_type", None) in ("dynamic", "longrope"):
            module.rope_type = "default"  # type: ignore[assignment]


@contextmanager
def short_windows(config: Any, tokens: int) -> Iterator[None]:
    """Make each of the decoder's attention windows ``tokens`` long, so that short sequences reach beyond it."""
    names = [_SIZES[kind] for kind in _layer_kinds(config) if kind in _SIZES]
    before = {name: getattr(config, name) for name in names}
    try:
        for name in names:
            setattr(config, name, tokens)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def reach(config: Any) -> int | None:
    """How many tokens the narrowest window of a decoder's layers spans; None if no layer has a window."""
    return min((int(getattr(config, _SIZES[kind])) for kind in _layer_kinds(config) if kind in _SIZES), default=None)


def windows(config: Any) -> tuple[int | None, ...] | None:
    """The tokens that each layer's attention spans, itself included; None for a layer without a bound.

    None in place of all of them if a layer's bound is of another kind.
    """
    count = int(config.num_hidden_layers)
    kinds = tuple(config.layer_types) if _has_masks_by_kind(config) else _layer_kinds(config) * count
    if len(kinds) != count or _CHUNKED in kinds:
        return None
    return tuple(int(config.sliding_window) if kind == _SLIDING else None for kind in kinds)


def model_class(config: Any) -> Any:
    """The class of transformers of a configuration's bare model."""
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _masks(config: Any, position_ids: Tensor, mask: Tensor, dtype: torch.dtype) -> Masks:
    """Return the model's ``attention_mask``: one for all layers, or one for each kind of layer."""
    of, to = position_ids[:, None, :, None], position_ids[:, None, None, :]
    found: dict[str, Tensor] = {}
    for kind in _layer_kinds(config):
        seen = mask
        if kind == _SLIDING:
            seen = mask & (of - to < config.sliding_window)
        elif kind == _CHUNKED:
            seen = mask & (of // config.attention_chunk_size == to // config.attention_chunk_size)
        if config._attn_implementation == "eager":  # which adds the mask to the scores
            hidden = torch.finfo(dtype).min
            seen = torch.where(seen, torch.zeros((), dtype=dtype), torch.full((), hidden, dtype=dtype))
        found[kind] = seen
    if _has_masks_by_kind(config):
        return found
    (only,) = found.values()
    return only


def _layer_kinds(config: Any) -> tuple[str, ...]:
    """The kinds of attention of a decoder's layers, or the one kind that all layers have."""
    if _has_masks_by_kind(config):
        return tuple(dict.fromkeys(config.layer_types))
    is_windowed = getattr(config, "sliding_window", None) and "create_sliding_window" in _source(config)
    return (_SLIDING,) if is_windowed else (_FULL,)


def _has_masks_by_kind(config: Any) -> bool:
    return bool(getattr(config, "layer_types", None)) and "attention_mask, dict)" in _source(config)


def _bias_at(config: Any, position_ids: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Let a decoder with biases on distances (alibi) compute them from the positions."""
    module = _module(config)
    build: Callable[..., Tensor] | None = getattr(module, _ALIBI, None)
    if build is None:
        return contextlib.nullcontext()

    def at_positions(_: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        rows, length = position_ids.shape
        counted = build(torch.ones((1, length), dtype=torch.long), heads, dtype).reshape(heads, length)
        return counted[:, position_ids].transpose(0, 1).reshape(rows * heads, 1, length)

    return _replaced(module, at_positions)


@contextmanager
def _replaced(module: Any, function: Callable[..., Tensor]) -> Iterator[None]:
    with _ONE_AT_A_TIME:
        before = getattr(module, _ALIBI)
        setattr(module, _ALIBI, function)
        try:
            yield
        finally:
            setattr(module, _ALIBI, before)


def _module(config: Any) -> Any:
    return sys.modules[model_class(config).__module__]


def _source(config: Any) -> str:
    return inspect.getsource(_module(config))
