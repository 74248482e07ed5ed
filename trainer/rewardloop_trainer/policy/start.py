"""Finds the policy that training starts from: a Hugging Face base, or a version of the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from rewardloop.formats.store import MANIFEST, ModelStore
from rewardloop.formats.text import Encoder
from rewardloop.formats.text_format import read_text_format
from rewardloop_trainer.data.base_layout import LayoutChoice, decoder_layout
from rewardloop_trainer.data.base_text import load_tokenizer, longest_input
from rewardloop_trainer.policy.base_policy import PolicyBase

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

    def load(self) -> Any:
        """Load the weights as `load_causal_lm` does. Raises `UnusableBase`."""
        return load_causal_lm(self.source)


def load_causal_lm(source: str) -> Any:
    """Load a causal LM as `PolicyBase.load` does, in float32: small steps are lost in half precision.

    It is put on the first GPU if there is one. Raises `UnusableBase`.
    """
    model = PolicyBase.of(source).load(torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


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
