"""Loads the trunk of a Hugging Face base, and tells which of the checkpoint's tensors the trunk does not use."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)
from transformers.utils import logging as hf_logging

from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.stored_weights import compute_in_float32, loading_dtype

# Tensors without which a trunk is complete: heads of pretraining, poolers, and buffers that are computed anew.
_NO_HEADS = (
    r"(^|\.)lm_head\.",
    r"^cls\.(predictions|seq_relationship)\.",
    r"^embed_out\.",  # GPT-NeoX
    r"^(generator|discriminator)_predictions\.",  # ELECTRA
    r"^generator_lm_head\.",
    r"^vocab_(transform|layer_norm|projector)\.",  # DistilBERT
    r"^(predictions|sop_classifier)\.",  # ALBERT
    r"^(lm|mask)_predictions\.",  # DeBERTa
    r"(^|\.)pooler\.",
    r"(^|\.)rotary_emb\.inv_freq$",
    r"\.(attn|attention)\.(masked_)?bias$",
    r"(^|\.)position_ids$",
)
_NO_HEADS_OF = {"modernbert": (r"^(head|decoder)\.",)}


def read_config(base: str) -> Any:
    """Read the configuration of a base. Raises `UnusableBase`."""
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableBase(f"{base}: {error}") from error


def is_decoder(config: Any) -> bool:
    """Whether the base is a decoder, not an encoder. Raises `UnusableBase` for any other architecture."""
    if config.is_encoder_decoder:
        raise UnusableBase(f"{config.model_type} is an encoder-decoder: bases are encoders or decoders")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        _require_plain_attention(config)
        return True
    raise UnusableBase(f"{config.model_type!r} is neither a known encoder nor a known decoder")


def load_trunk(base: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Load the bare model, without the pooling layer that some encoders have and that is not used here.

    Returns:
        The trunk, and the names of the trained heads in the checkpoint, which it does not use.

    Raises:
        UnusableBase: If the base cannot be loaded, or its checkpoint lacks a weight of the trunk.
    """
    kind: Any = MODEL_MAPPING[type(read_config(base))]
    has_pooler = inspect.isclass(kind) and "add_pooling_layer" in inspect.signature(kind).parameters
    return load_complete(AutoModel, base, **({"add_pooling_layer": False} if has_pooler else {}))


def load_complete(kind: Any, base: str, **options: bool | int) -> tuple[nn.Module, tuple[str, ...]]:
    """Load a model of a Hugging Face class from safetensors, without remote code.

    Returns:
        The model, and the names of the trained heads in the checkpoint, which it does not use.

    Raises:
        UnusableBase: If it cannot be loaded, or the checkpoint lacks a weight, which would then be random.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.ERROR)  # what it would report is judged below
    try:
        dtype = loading_dtype(base)
        model, report = kind.from_pretrained(
            base,
            **options,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnusableBase(f"{base}: {error}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    if missing := {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}:
        raise UnusableBase(
            f"{base}: the checkpoint lacks weights of {type(model).__name__}, or has them in another shape: "
            f"{some_of(missing)}"
        )
    if dtype is not torch.float32:
        compute_in_float32(model)
    model.config.use_cache = False
    ignored = re.compile("|".join((*_NO_HEADS, *_NO_HEADS_OF.get(model.config.model_type, ()))))
    heads = tuple(sorted(name for name in report["unexpected_keys"] if not ignored.search(name)))
    return cast(nn.Module, model), heads


def some_of(names: Iterable[str], most: int = 8) -> str:
    """Return at most ``most`` of the names, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _require_plain_attention(config: Any) -> None:
    """Raise `UnusableBase` unless the decoder's layers are plain causal attention.

    An exported graph gets positions and a mask. A decoder that computes with anything else would silently score
    wrongly. A sliding window is allowed, because inputs are kept within it (`attention_window`).
    """
    layers = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    local = {kind for kinds in getattr(config, "attention_types", None) or () for kind in kinds[0]} - {"global"}
    odd = (layers | local) - {"full_attention", "sliding_attention", "attention"}
    if getattr(config, "alibi", False):
        odd.add("distances between tokens (alibi)")
    if getattr(config, "use_bidirectional_attention", False):
        odd.add("bidirectional attention")
    trunk: Any = MODEL_MAPPING[type(config)]
    kinds = trunk if isinstance(trunk, tuple) else (trunk,)
    taken = [inspect.signature(kind.forward).parameters for kind in kinds]
    if not odd and not all({"attention_mask", "position_ids"} <= set(parameters) for parameters in taken):
        odd.add("no positions or no mask as inputs")
    if odd:
        raise UnusableBase(
            f"{config.model_type}: a decoder's layers must be plain causal attention, not {', '.join(sorted(odd))}"
        )
