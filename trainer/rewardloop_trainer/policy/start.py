"""Finds the policy that training starts from: a Hugging Face base, or a version of the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rewardloop.formats.store import MANIFEST, ModelStore
from rewardloop.formats.text import Encoder
from rewardloop.formats.text_format import read_text_format
from rewardloop_trainer.data.base_layout import LayoutChoice, decoder_layout
from rewardloop_trainer.data.base_text import load_tokenizer, longest_input
from rewardloop_trainer.learning.layers import freeze_layers
from rewardloop_trainer.learning.lora_layers import adapter_weights, add_adapters, has_adapters, merge_adapters
from rewardloop_trainer.learning.memory_estimate import Trainer, check_memory
from rewardloop_trainer.learning.model_load import (
    UnusableDevice,
    check_machine,
    device_of,
    divide_causal_lm,
    prepare,
    release,
    type_of,
)
from rewardloop_trainer.learning.settings import LearnerSettings
from rewardloop_trainer.policy.base_policy import PolicyBase

MEASURED = LearnerSettings.model_validate({})  # a model that is only measured is whole and in float32
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", MANIFEST)


@dataclass(frozen=True, slots=True)
class PolicyStart:
    """A policy to train.

    Attributes:
        source: Directory or hub id with the weights.
        base: The base that the policy descends from, for the manifest.
        version: The version in the store; None for a base.
        digest: The version's digest, or the hub's commit.
        encoder: The policy's tokenizer and text layout.
        write_rest: Writes into a directory what a policy needs beside its weights.
        layout: How its text layout compares with the base's own, for the manifest.
    """

    source: str
    base: str
    version: str | None
    digest: str
    encoder: Encoder
    write_rest: Callable[[Path], None]
    layout: str = ""

    def load(self, settings: LearnerSettings = MEASURED) -> Any:
        """Load the weights as `load_causal_lm` does. Raises `UnusableBase`."""
        return load_causal_lm(self.source, settings)

    def load_to_learn(self, settings: LearnerSettings, trainer: Trainer, token_budget: int) -> Any:
        """Load the weights as `load_to_learn` does. Raises `UnusableBase` and `UnusableDevice`."""
        longest = min(self.encoder.max_length, token_budget)
        return load_to_learn(self.source, settings, trainer, tokens=token_budget, longest=longest)

    def tokenizer(self) -> Callable[[], Any]:
        """Return what loads the Hugging Face tokenizer: the policy's own, or one around its tokens if it has none."""
        encoder, source = self.encoder, self.source

        def load() -> Any:
            if self.version is None or (Path(source) / "tokenizer_config.json").exists():
                return load_tokenizer(PolicyBase.of(source).tokenizer)
            end, pad = (encoder.tokenizer.id_to_token(i) for i in (encoder.format.ends[0], encoder.format.pad))
            made: Any = PreTrainedTokenizerFast
            return made(tokenizer_object=encoder.tokenizer, eos_token=end, pad_token=pad)

        return load

    def finished(self, model: Any, settings: LearnerSettings) -> Any:
        """The policy to save, as `finished` makes it of a model that `load_to_learn` gave."""
        return finished(model, self.source, settings)


def load_causal_lm(source: str, settings: LearnerSettings = MEASURED) -> Any:
    """Load a causal LM as `PolicyBase.load` does, in float32, on the device that the settings name.

    Raises `UnusableBase`.
    """
    return PolicyBase.of(source).load(torch.float32).to(device_of(settings))


def load_to_learn(source: str, settings: LearnerSettings, trainer: Trainer, *, tokens: int, longest: int) -> Any:
    """Load a causal LM to be trained as the settings say: all of its weights, or adapters on them.

    Args:
        source: Directory or hub id of the weights.
        settings: How it is loaded.
        trainer: What trains it, for the memory that this takes.
        tokens: Tokens of a micro-batch.
        longest: Tokens of the longest sequence.

    Raises:
        UnusableBase: If the weights cannot be loaded.
        UnusableDevice: If this machine cannot train them so, or has too little memory.
    """
    check_machine(settings)
    if settings.shard and trainer == "online":
        raise UnusableDevice(
            "shard is for supervised training, and for learning from people's signals: an online algorithm samples "
            "with the whole policy in each process, so leave it off, or take dpo or kto"
        )
    base = PolicyBase.of(source)
    check_memory(base.config, settings, trainer, tokens=tokens, longest=longest)
    model = base.load(type_of(settings))
    prepare(model, model.base_model, settings)
    if settings.method == "lora":
        add_adapters(model, settings.lora)
        freeze_layers(model.base_model, settings.frozen_layers)
    if settings.shard:
        divide_causal_lm(model, device_of(settings))
    return model


def finished(model: Any, source: str, settings: LearnerSettings) -> Any:
    """The causal LM to save, in float32, of a model that `load_to_learn` gave; adapters are merged.

    Adapters that learned on rounded weights are merged into the weights as they are stored.
    """
    release(model, model.base_model)
    if settings.shard:  # it was put together in the CPU's memory
        model.to(device_of(settings))
    if not has_adapters(model):
        return model.float()
    if settings.weights == "float32" and settings.quantised_base == "none":
        merge_adapters(model)
        return model
    learned = {name: weight.clone() for name, weight in adapter_weights(model).items()}
    model.to("meta")  # the memory of two models at once may not be there
    whole = load_causal_lm(source, settings)
    add_adapters(whole, settings.lora)
    for name, weight in adapter_weights(whole).items():
        weight.copy_(learned[name])
    merge_adapters(whole)
    return whole


def start_from_base(base: str, max_length: int, choice: LayoutChoice = "exact") -> PolicyStart:
    """Start from a Hugging Face directory or hub id.

    Args:
        base: The directory or hub id.
        max_length: Most tokens of prompt and response together; 0: as many as the base can read.
        choice: "plain" takes a plain layout, and leaves the tokenizer that is written without a chat template.

    Raises:
        UnusableBase: If the base has no usable tokenizer or configuration.
    """
    policy = PolicyBase.of(base)
    tokenizer = load_tokenizer(policy.tokenizer)
    longest = longest_input(policy.config, tokenizer)
    layout = decoder_layout(tokenizer, "write", choice=choice)
    if choice == "plain":
        tokenizer.chat_template = None  # an export of what is written must lay texts out as training did
    encoder = Encoder(tokenizer.backend_tokenizer, layout.text_format, min(max_length or longest, longest))
    commit = getattr(policy.config, "_commit_hash", None) or ""
    return PolicyStart(base, base, None, commit, encoder, tokenizer.save_pretrained, layout.note)


def start_from_store(store: ModelStore, version: str, max_length: int) -> PolicyStart:
    """Start from a version of the model store.

    Args:
        store: The model store.
        version: Number of the policy version.
        max_length: Most tokens of prompt and response together; 0: the version's own maximum.

    Raises:
        StoreError: If the store does not have the version or its files were altered.
    """
    manifest, directory = store.manifest("policy", version), store.fetch("policy", version)
    longest = min(max_length or manifest.max_length, manifest.max_length)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    encoder = Encoder(tokenizer, read_text_format(manifest.text_format), longest)

    def write_rest(target: Path) -> None:
        shutil.copytree(directory, target, ignore=shutil.ignore_patterns(*_WEIGHTS, "run.json"), dirs_exist_ok=True)

    layout = manifest.notes.get("layout", "")
    return PolicyStart(str(directory), manifest.base, version, manifest.digest, encoder, write_rest, layout)
