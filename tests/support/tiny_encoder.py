"""A BERT-type base of a few thousand weights, as an ordinary Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = [*_SPECIAL, "question", "poor", "good", "answer", *map(str, range(10))]


def save_tiny_encoder(directory: Path, seed: int = 0, characters: str = "", words: Sequence[str] = ()) -> Path:
    """Write it with random weights; it knows these characters one by one, these words, or those of `signals.choice`."""
    known = [*_SPECIAL, *characters] if characters else [*_SPECIAL, *words] if words else _WORDS
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    if characters:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    elif words:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(known),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    return directory
