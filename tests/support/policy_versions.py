"""Small policies in a model store, for tests: a byte-level tokenizer and a random Llama."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.text import Encoder

END, PAD = "<end>", "<pad>"
# Of policies that are to learn within seconds: prompts like "q12", words and marks.
FEW_CHARACTERS = "abq0123456789 .,;:!?-+*/="


def byte_tokenizer(characters: str | None = None) -> Tokenizer:
    """Every byte is a token; of ASCII ``characters``, if given, and it reads no other."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if characters is not None:
        alphabet = [character.replace(" ", "Ġ") for character in characters]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2 + len(alphabet),
        special_tokens=[PAD, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([], trainer)
    return tokenizer


def byte_encoder(max_length: int = 128, characters: str | None = None) -> Encoder:
    tokenizer = byte_tokenizer(characters)
    text_format = TextFormat.for_decoder(tokenizer, eos_id=1, pad_id=0)
    return Encoder(tokenizer, text_format, max_length)


def small_llama(seed: int = 0, width: int = 32, vocabulary: int = 258) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.1,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def quick_policy(seed: int) -> tuple[Any, Encoder]:
    """A random policy over FEW_CHARACTERS, which learns within seconds what it is rewarded for."""
    return small_llama(seed, vocabulary=2 + len(FEW_CHARACTERS)), byte_encoder(64, FEW_CHARACTERS)


def publish_policy(
    store: ModelStore,
    model: Any,
    encoder: Encoder,
    parent: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Manifest:
    def write(directory: Path) -> None:
        model.save_pretrained(directory)
        encoder.tokenizer.save(str(directory / "tokenizer.json"))
        tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))

    manifest = Manifest(
        model="policy",
        parent=parent,
        text_format=encoder.format.to_json(),
        max_length=encoder.max_length,
        metrics=metrics or {},
    )
    return store.publish(manifest, write)
