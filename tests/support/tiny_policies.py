"""Tiny random causal language models of many families, as Hugging Face directories with a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from support.policy_versions import END, PAD, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# More rows than the tokenizer has tokens, because some families' tokenizers add their own.
_VOCABULARY = {"vocab_size": 264, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
_SHAPE: Mapping[str, Any] = {
    **_VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 160,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 160, "initializer_range": 0.3}
# The windows are shorter than the prompts.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": _SHAPE,
    "qwen2": _SHAPE,
    "qwen3": _SHAPE,
    "gemma": _SHAPE,
    "gemma2": {**_SHAPE, "sliding_window": 9, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_SHAPE, "sliding_window": 9, "query_pre_attn_scalar": 8},
    "mistral": {**_SHAPE, "sliding_window": 7},
    "phi3": _SHAPE,
    "olmo2": _SHAPE,
    "gpt2": {**_VOCABULARY, **_GPT2},
    "gpt_neox": _SHAPE,
    "gpt_oss": {**_SHAPE, **_EXPERTS, "sliding_window": 9},
    "mixtral": {**_SHAPE, **_EXPERTS},
    "qwen3_moe": {**_SHAPE, **_EXPERTS},
    # With attention biases by distance in place of positions.
    "bloom": {**_VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3},
    "mpt": {**_VOCABULARY, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 160, "initializer_range": 0.3},
    # With recurrent layers.
    "qwen3_next": {**_SHAPE, **_EXPERTS, **_LINEAR, "num_hidden_layers": 4},
    "lfm2": {**_SHAPE, "full_attn_idxs": [1], "block_multiple_of": 8},
    "qwen3_5_text": {**_SHAPE, **_LINEAR, "num_hidden_layers": 4},
    "mamba2": {
        **_VOCABULARY,
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "initializer_range": 1.0,
    },
    "mamba": {**_VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "initializer_range": 1.0},
    # It keeps a state of its own, so it is refused.
    "rwkv": {**_VOCABULARY, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
}


def tiny_policy(family: str, seed: int = 7, **settings: Any) -> Any:
    """A random model; ``settings`` are added to its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **settings})
    return AutoModelForCausalLM.from_config(config).float().eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_tiny_policy(directory: Path, family: str = "llama", *, generation: Any = None, **settings: Any) -> Path:
    """Save a random model and its tokenizer; ``generation`` holds fields of its generation config."""
    model = tiny_policy(family, **settings)
    model.save_pretrained(directory)
    for name, value in {"eos_token_id": 1, "pad_token_id": 0, **(generation or {})}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.to_json_file(directory / "generation_config.json")
    tiny_tokenizer().save_pretrained(directory)
    return directory
