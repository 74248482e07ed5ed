"""The texts, the pairs and the random Llamas that trl_speed.py trains: the same for both libraries."""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rewardloop.formats.affix_layout import Affix, TextFormat
from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Pair

PAD, END, LONGEST = "<pad>", "<end>", 384
FIRST = 0x4E00  # a token is one character, so that both libraries cut a text alike


def encoder_of(vocabulary: int) -> Encoder:
    words = {PAD: 0, END: 1, **{chr(FIRST + i): 2 + i for i in range(vocabulary - 2)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens([AddedToken(PAD, special=True), AddedToken(END, special=True)])
    plain = Affix()
    layout = TextFormat((), plain, plain, plain, Affix((), (1,)), segment_ids=False, pad=0)
    return Encoder(tokenizer, layout, LONGEST)


def pairs_of(count: int, vocabulary: int, chance: random.Random) -> list[Pair]:
    """Log-normal lengths. Tokens are Zipf-like; a chosen answer has 65% of even ones, a rejected one 35%."""

    def text(least: int, most: int, median: int, even: float) -> str:
        length = min(most, max(least, round(median * chance.lognormvariate(0, 0.7))))
        ranks = [min(vocabulary // 2 - 2, int(chance.paretovariate(0.7))) for _ in range(length)]
        return "".join(chr(FIRST + 2 * rank + (chance.random() >= even)) for rank in ranks)

    return [
        Pair((Turn("user", text(20, 100, 45, 0.5)),), text(10, 150, 45, 0.65), text(10, 150, 45, 0.35))
        for _ in range(count)
    ]


def start_of(kind: str, options: argparse.Namespace, seed: int) -> Any:
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32,
        num_key_value_heads=options.width // 32,
        max_position_embeddings=LONGEST,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        num_labels=1,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return (LlamaForSequenceClassification if kind == "reward" else LlamaForCausalLM)(config).eval()
