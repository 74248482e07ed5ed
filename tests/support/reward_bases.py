"""Small random bases of each architecture, their tokenizer, and their exports, made once for all tests of a process."""

from __future__ import annotations

import atexit
import copy
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import MODEL, TORCH
from rewardloop.formats.text import Encoded, Encoder, Turn
from rewardloop_trainer.export.parity import export_reward
from rewardloop_trainer.learning.linear_modules import AdapterModules, linear_modules
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.lora import as_delta
from rewardloop_trainer.reward.model import RewardModel

PAD, CLS, SEP, END = range(4)
WORDS = ["why", "sky", "blue", "refund", "please", "because", "light", "scatters", "good", "bad", "würde", "日本", "🙂"]


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([], trainer)
    return tokenizer


def config(kind: str, layers: int = 2) -> PretrainedConfig:
    size = {"vocab_size": 260, "pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": END}
    tower = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    positions = {"max_position_embeddings": 256}
    match kind:
        case "bert":
            return BertConfig(**size, **tower, **positions)
        case "roberta":
            return RobertaConfig(**size, **tower, **positions)
        case "llama":
            return LlamaConfig(**size, **tower, **positions, num_key_value_heads=2)
        case "qwen2":
            return Qwen2Config(**size, **tower, **positions, num_key_value_heads=2)
        case "gpt2":
            return GPT2Config(**size, n_embd=32, n_layer=layers, n_head=4, n_positions=256)
    raise ValueError(kind)


def save_base(kind: str, directory: Path, seed: int = 0) -> Path:
    """A Hugging Face directory with random weights; large enough ones that scores differ visibly."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(config(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), pad_token="[PAD]", bos_token="[CLS]", eos_token="<end>"
    ).save_pretrained(directory)


def encoder_for(kind: str, max_length: int = 200, *, segment_ids: bool = False) -> Encoder:
    tokenizer = byte_tokenizer()
    if kind in ("bert", "roberta"):
        text_format = TextFormat.for_encoder(tokenizer, segment_ids=segment_ids)
    else:
        text_format = TextFormat.for_decoder(tokenizer, eos_id=END, bos_id=CLS, pad_id=PAD)
    return Encoder(tokenizer, text_format, max_length)


def mixed_sequences(encoder: Encoder, count: int, seed: int = 0) -> list[Encoded]:
    """Pairs of very different length, a few longer than the model reads."""
    chance = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, most)))

    return [encoder.pair((Turn("user", text(20)),), text(25)) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Export:
    model: RewardModel
    encoder: Encoder
    directory: Path
    adapters: tuple[str, ...]

    @property
    def onnx(self) -> Path:
        return self.directory / MODEL


def trained_delta(
    model: RewardModel, modules: Literal["query_value", "attention", "all"] = "query_value", seed: int = 1
) -> RewardModel:
    """A copy of the model with adapters and heads that differ from it, as after a delta round."""
    changed = as_delta(copy.deepcopy(model), LoraSettings(rank=3, alpha=6, modules=modules)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "lora_" in name or name.startswith("heads."):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return changed


@cache
def exported(kind: str, segment_ids: bool = False, adapters: AdapterModules = "query_value") -> Export:
    """A reward model with 3 heads as a version directory, made once for all processes of a test run.

    Tests must not change it.
    """
    directory = _shared() / f"{kind}-{segment_ids}-{adapters}"
    encoder = encoder_for(kind, segment_ids=segment_ids)
    with FileLock(f"{directory}.lock"):
        if directory.exists():
            model = RewardModel.load(directory / TORCH)
            return Export(model, encoder, directory, linear_modules(model.trunk, adapters))
        partial = Path(tempfile.mkdtemp(dir=_shared()))
        model = RewardModel.from_base(save_base(kind, partial / "base"), heads=3)
        layers = linear_modules(model.trunk, adapters)
        export_reward(model, encoder.tokenizer, encoder.format, partial / "version", adapters=layers)
        (partial / "version").rename(directory)
    return Export(model, encoder, directory, layers)


@cache
def _shared() -> Path:
    """A directory that every process of this test run uses; a process that runs no other tests removes its own."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        alone = Path(tempfile.mkdtemp(prefix="rewardloop-exports-"))
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return alone
    shared = Path(tempfile.gettempdir()) / f"rewardloop-exports-{run}"
    shared.mkdir(exist_ok=True)
    return shared
