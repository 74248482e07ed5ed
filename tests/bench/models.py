"""The models and texts that the benchmarks share: MiniLM as a scorer, a decoder for groups; always the same."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minilm

from rewardloop_cli.bench.texts import LENGTHS, Lengths, built_in
from rewardloop_client import ScoreGroup
from rewardloop_data.source_file import SourceFile

SEED = 0
# Of an encoder's pair, in tokens. In the tokenizer too, where a peer has no option for it.
MAX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Pair:
    prompt: str
    response: str


def encoder_base(work: Path) -> Path:
    """MiniLM with a classifier of one random, seeded unit, as a Hugging Face sequence classifier."""
    directory = work / "minilm-scorer"
    if not (directory / "config.json").exists():
        import torch
        from transformers import AutoTokenizer, BertForSequenceClassification

        source = minilm.fetch(work)
        torch.manual_seed(SEED)
        model = BertForSequenceClassification.from_pretrained(source, num_labels=1)
        model.classifier.weight.data.normal_(std=model.config.hidden_size**-0.5)
        _save(model, AutoTokenizer.from_pretrained(source, model_max_length=MAX_LENGTH), directory)
    return directory


def decoder_base(work: Path, layers: int = 8, width: int = 512) -> Path:
    """A Llama-type sequence classifier with random weights; its tokenizer is MiniLM's, so that a word is a token."""
    directory = work / f"llama-{layers}x{width}"
    if not (directory / "config.json").exists():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

        source = AutoTokenizer.from_pretrained(minilm.fetch(work))
        backend = source.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
        )
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=width * 11 // 4,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            num_labels=1,
        )
        _save(LlamaForSequenceClassification(config), tokenizer, directory)
    return directory


def _save(model: object, tokenizer: object, directory: Path) -> None:
    part = directory.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(part)  # type: ignore[attr-defined]
    part.rename(directory)


def pairs(mix: str, count: int, data: Path | None = None) -> list[Pair]:
    """``count`` pairs in random order: "short" (about 64 tokens), "real" (about 300: AlpacaEval's answers where
    ``data`` has them, else words with such lengths)."""
    if mix == "real" and data is not None:
        rows: Any = [line.value() for line in SourceFile.of(data / "alpacaeval_test.jsonl.gz").lines()]
        found = [Pair(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
        random.Random(SEED).shuffle(found)
        return (found * -(-count // len(found)))[:count]
    return [Pair(str(g.prompt), g.responses[0]) for g in built_in(LENGTHS[mix], 1, count, SEED)]


def groups(prompt_tokens: int, responses: int, response_tokens: int, count: int) -> list[ScoreGroup]:
    """Groups of exactly so many words, which are so many tokens."""
    lengths = Lengths(prompt_tokens, response_tokens, 0.0)
    return built_in(lengths, responses, count, SEED)


def write_rows(path: Path, asked: list[ScoreGroup]) -> Path:
    """The groups as JSONL ``{prompt, responses}``."""
    with path.open("w") as file:
        for group in asked:
            file.write(json.dumps({"prompt": group.prompt, "responses": list(group.responses)}) + "\n")
    return path


def as_groups(asked: list[Pair]) -> list[ScoreGroup]:
    return [ScoreGroup(pair.prompt, [pair.response]) for pair in asked]
