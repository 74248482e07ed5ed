"""ONNX graphs of sequence classifiers as users have them, with the names that Hugging Face optimum writes."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from support.chat_bases import chat_base

ENCODERS = ("bert", "deberta", "modernbert")
DECODERS = ("llama", "llama_positions")
_ROWS = 800  # of the embedding, more than any of the tokenizers has tokens
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass(frozen=True, slots=True)
class OwnBase:
    """A user's directory with ``model.onnx`` and what Hugging Face keeps beside it.

    Attributes:
        directory: The directory.
        model: The classifier that the graph was made of.
        tokenizer: Its tokenizer.
    """

    directory: Path
    model: Any
    tokenizer: Any

    @property
    def graph(self) -> Path:
        return self.directory / "model.onnx"

    def copy(self, directory: Path, *, weights: bool = True) -> OwnBase:
        """Return the same in another directory, as ``base`` there."""
        target = directory / "base"
        shutil.copytree(self.directory, target)
        if not weights:
            (target / "model.safetensors").unlink()
        return OwnBase(target, self.model, self.tokenizer)


@cache
def own_base(kind: str, labels: int = 1, *, pad_is_eos: bool = False) -> OwnBase:
    """A small random classifier of one of `ENCODERS` or `DECODERS`, and its graph, made once for a process."""
    directory = Path(tempfile.mkdtemp(prefix="own-graph-"))
    tokenizer = pair_tokenizer() if kind in ENCODERS else _chat_tokenizer(pad_is_eos=pad_is_eos)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(_config(kind, labels, tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_graph(model, directory / "model.onnx", _inputs_of(kind), traced=kind != "bert")
    return OwnBase(directory, model, tokenizer)


def _inputs_of(kind: str) -> tuple[str, ...]:
    more = {"bert": ("token_type_ids",), "llama_positions": ("position_ids",)}
    return ("input_ids", "attention_mask", *more.get(kind, ()))


def _write_graph(
    model: Any,
    path: Path,
    inputs: tuple[str, ...],
    *,
    traced: bool,
) -> None:
    """Export a classifier: ``traced`` by TorchScript, as optimum does, else by dynamo."""
    ids = torch.randint(4, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    examples = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": mask.cumsum(1) - 1,
    }
    given = tuple(examples[name] for name in inputs)
    options: dict[str, Any]
    if traced:
        axes = {name: {0: "batch_size", 1: "sequence_length"} for name in inputs}
        options = {"dynamic_axes": axes | {"logits": {0: "batch_size"}}, "opset_version": 17}
    else:
        sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
        options = {"dynamic_shapes": (tuple(dict(sizes) for _ in inputs),), "opset_version": 20}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Positional(model, inputs).eval(),
                given,
                str(path),
                input_names=list(inputs),
                output_names=["logits"],
                dynamo=not traced,
                external_data=False,
                verbose=False,
                **options,
            )
    finally:
        exporter_log.setLevel(level)


class _Positional(nn.Module):
    def __init__(self, model: Any, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *given: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.inputs, given, strict=True))).logits
        return logits


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and pairs are laid out as BERT's tokenizer does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=259, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _chat_tokenizer(*, pad_is_eos: bool) -> Any:
    tokenizer = chat_base("chatml").hugging_face()
    if not pad_is_eos:
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def _config(kind: str, labels: int, tokenizer: Any) -> PreTrainedConfig:
    shared = {**_TOWER, "vocab_size": _ROWS, "num_labels": labels, "pad_token_id": tokenizer.pad_token_id}
    shared["max_position_embeddings"] = 256
    match kind:
        case "bert":
            return BertConfig(**shared)
        case "deberta":
            return DebertaV2Config(
                **shared,
                type_vocab_size=0,
                relative_attention=True,
                position_buckets=32,
                norm_rel_ebd="layer_norm",
                share_att_key=True,
                pos_att_type=["p2c", "c2p"],
                position_biased_input=False,
                pooler_hidden_size=32,
            )
        case "modernbert":
            ends = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
            return ModernBertConfig(**shared, **ends, local_attention=16, global_attn_every_n_layers=2)
        case "llama" | "llama_positions":
            ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
            return LlamaConfig(**shared, **ends, num_key_value_heads=2, use_cache=False)
    raise ValueError(kind)
