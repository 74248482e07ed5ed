"""Writes a family's tiny base as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from support.chat_bases import chat_base
from support.families.table import Family
from support.families.tokenizers import encoder_tokenizer

_SPREAD = 0.1  # standard deviation of what is added to each weight, so that scores differ clearly


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """Return the family's tokenizer."""
    return chat_base(family.text).hugging_face() if family.decodes else encoder_tokenizer(family.text)


def has_classifier(family: Family) -> bool:
    """Whether transformers has a sequence classifier of this family."""
    return family.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def save_reward(family: Family, directory: Path, seed: int = 0) -> Path:
    """Write a one-label sequence classifier, or a causal language model if the family has no classifier."""
    if not has_classifier(family):
        return save_policy(family, directory, seed)
    return _save(family, AutoModelForSequenceClassification, directory, seed)


def save_policy(family: Family, directory: Path, seed: int = 0) -> Path:
    """Write a causal language model."""
    return _save(family, AutoModelForCausalLM, directory, seed)


def _save(family: Family, kind: Any, directory: Path, seed: int) -> Path:
    tokenizer = tokenizer_of(family)
    torch.manual_seed(seed)
    model = kind.from_config(config_of(family, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * _SPREAD)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as transformers leaves it
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def config_of(family: Family, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return the family's configuration, with the tokenizer's ids and one label."""
    known = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "sep")}
    ids = {f"{name}_token_id": number for name, number in known.items() if number is not None}
    text: dict[str, Any] = {"vocab_size": len(tokenizer), **ids}
    sizes = dict(family.sizes)
    if "text_config" in sizes:
        sizes["text_config"] = {**sizes["text_config"], **text}
    else:
        sizes |= text
    return AutoConfig.for_model(family.model_type, **sizes, num_labels=1)
