"""Loads the trunk of a Hugging Face base, and tells which of the checkpoint's tensors the trunk does not use."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from rewardloop_reward.decoder_rows import freeze_rotations, model_class, obstacles
from rewardloop_reward.stored_weights import compute_in_float32, loading_dtype
from rewardloop_reward.unusable_base import UnusableBase

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
    """Read the configuration of a base. Raises `UnusableBase` if it cannot be read, or its weights are quantised."""
    try:
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableBase(f"{base}: {error}") from error
    if quantised := getattr(config, "quantization_config", None):
        known = quantised if isinstance(quantised, dict) else quantised.to_dict()
        method = known.get("quant_method", "an unknown method")
        raise UnusableBase(
            f"{base}: its weights are quantised ({method}), and graphs are made of float weights: take the checkpoint "
            "from which it was made, or dequantise it (model.dequantize() of transformers) and save it"
        )
    return config


def is_decoder(config: Any) -> bool:
    """Whether the base is a decoder, not an encoder. Raises `UnusableBase` for any other architecture."""
    if config.is_encoder_decoder:
        raise UnusableBase(f"{config.model_type} is an encoder-decoder: bases are encoders or decoders")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if found := obstacles(config.get_text_config()):
            raise UnusableBase(
                f"{config.model_type}: a decoder's layers must be causal attention by positions, not {', '.join(found)}"
            )
        return True
    raise UnusableBase(f"{config.model_type!r} is neither a known encoder nor a known decoder")


def load_trunk(base: str, *, pooler: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
    """Load the bare model, without the pooling layer that some encoders have unless ``pooler`` asks for it.

    Returns:
        The trunk, and the names of the trained heads in the checkpoint, which it does not use.

    Raises:
        UnusableBase: If the base cannot be loaded, or its checkpoint lacks a weight of the trunk.
    """
    has_pooler = "add_pooling_layer" in inspect.signature(model_class(read_config(base))).parameters
    whole, heads = load_complete(AutoModel, base, **({"add_pooling_layer": pooler} if has_pooler else {}))
    return text_model(whole), heads


def text_model(trunk: nn.Module) -> nn.Module:
    """The text model of a multimodal trunk; any other trunk itself."""
    return cast(nn.Module, getattr(trunk, "language_model", trunk))


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
            attn_implementation=_attention(kind, base),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
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
    model.config.use_cache = model.config.get_text_config().use_cache = False
    freeze_rotations(model)
    ignored = re.compile("|".join((*_NO_HEADS, *_NO_HEADS_OF.get(model.config.model_type, ()))))
    heads = tuple(sorted(name for name in report["unexpected_keys"] if not ignored.search(name)))
    return cast(nn.Module, model), heads


def _attention(kind: Any, base: str) -> str:
    """Return "sdpa", or "eager" for a class of transformers that has no other attention."""
    found: Any = kind._model_mapping[type(read_config(base))]
    return "sdpa" if all(each._supports_sdpa for each in (found if isinstance(found, tuple) else (found,))) else "eager"


def some_of(names: Iterable[str], most: int = 8) -> str:
    """Return at most ``most`` of the names, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
