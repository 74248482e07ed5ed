"""Loads the model that a reward round starts from: the live version, or a new model on a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from tokenizers import Tokenizer

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import MODEL, TOKENIZER, TORCH, CorruptVersion, Manifest, ModelStore, Trunk
from rewardloop.formats.storing.pooling_file import POOLING
from rewardloop.formats.text import Encoder
from rewardloop.formats.text_format import read_text_format
from rewardloop_trainer.data.base_path import check_base
from rewardloop_trainer.data.base_text import (
    check_vocabulary,
    load_tokenizer,
)
from rewardloop_trainer.data.input_length import DEFAULT_REWARD_LENGTH, input_length
from rewardloop_trainer.reward.adapter_base import merged_base
from rewardloop_trainer.reward.base_layout import reward_layout
from rewardloop_trainer.reward.heads.step_token import with_step_end
from rewardloop_trainer.reward.lora import load_delta
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters

log = structlog.get_logger()

_INHERITED_NOTES = ("layout", "max_length", "fresh_signals")


class NothingToStartFrom(Exception):
    """Raised when the store has no reward model and the settings name no base."""


class NothingToTrain(Exception):
    """Raised when the live version lacks the torch weights that a round starts from: a graph alone, or proof alone."""


@dataclass(frozen=True, slots=True)
class RewardStart:
    """A reward model to train.

    Attributes:
        model: In evaluation mode, with the adapters of a live delta, not merged.
        encoder: The model's tokenizer and text layout.
        base: The base that the model descends from, for the manifest.
        directory: Files of the live version; None for a new model.
        trunk: The version whose graph the live version runs on: itself, or a delta's trunk; None for a new model.
        notes: What was chosen for a new model, or stands in the live version's manifest, for the next manifest.
    """

    model: RewardModel
    encoder: Encoder
    base: str
    directory: Path | None
    trunk: TrunkFiles | None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrunkFiles:
    """The manifest and files of a whole version."""

    manifest: Manifest
    directory: Path

    def model(self) -> RewardModel:
        """Load the model in evaluation mode. Raises `UnusableBase`."""
        return RewardModel.load(self.directory / TORCH)

    @property
    def graph(self) -> Path:
        return self.directory / MODEL


def start_from(
    store: ModelStore, version: str | None, settings: RewardHyperparameters, seed: int, name: str = REWARD
) -> RewardStart:
    """Load the live version, or make a new model if there is none.

    Args:
        store: The model store.
        version: The live version; None if there is none.
        settings: Name the base of a new model, its heads, pooling and length.
        seed: New score heads are drawn with it.
        name: The reward model's name.

    Raises:
        NothingToStartFrom: If there is neither a version nor a base.
        NothingToTrain: If the version has no torch weights.
        StoreError: If the store does not have the version or its files were altered.
        UnusableBase: If the base cannot be loaded, or has a trained head that would not be used as its class uses it.
    """
    if version is not None:
        manifest = store.manifest(name, version)
        if not any(name.startswith(f"{TORCH}/") for name in manifest.files):
            is_elsewhere = POOLING in manifest.files
            what = "is run by a server elsewhere and has no" if is_elsewhere else "is an ONNX graph without"
            raise NothingToTrain(
                f"{name} version {version} {what} torch weights, so no round can start from it: promote a version that "
                "has them"
            )
        directory = store.fetch(name, version)
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        trunk = TrunkFiles(manifest, directory)
        if manifest.trunk is not None:
            trunk = _trunk_of(store, name, manifest.trunk)
        model = trunk.model()
        if manifest.trunk is not None:
            load_delta(model, directory / TORCH, settings.lora.dropout)
        encoder = Encoder(tokenizer, read_text_format(manifest.text_format), manifest.max_length)
        notes = {name: manifest.notes[name] for name in _INHERITED_NOTES if name in manifest.notes}
        return RewardStart(model, encoder, manifest.base, directory, trunk, notes)
    if not settings.base:
        raise NothingToStartFrom(f"the store has no version of {name}: export one, or set --reward.base")
    check_base(settings.base, log.info)
    with merged_base(settings.base) as base:
        model = RewardModel.from_base(base, settings.heads, settings.pooling, seed, settings)
        of_base = load_tokenizer(base)
    check_vocabulary(of_base, model.vocabulary)
    layout = reward_layout(of_base, model)
    length = input_length(
        model.config, of_base, settings.max_length, default=DEFAULT_REWARD_LENGTH, setting="--reward.max-length"
    )
    notes = {"heads": model.head_note, "layout": layout.note, "max_length": length.reason}
    log.info("first reward model", base=settings.base, **notes)
    text_format = with_step_end(of_base, layout.text_format, settings)
    encoder = Encoder(of_base.backend_tokenizer, text_format, length.tokens)
    return RewardStart(model, encoder, settings.base, None, None, notes)


def _trunk_of(store: ModelStore, name: str, named: Trunk) -> TrunkFiles:
    manifest = store.manifest(name, named.version)
    if manifest.digest != named.digest or manifest.trunk is not None:
        raise CorruptVersion(f"{name} version {named.version} is not the trunk that the delta was trained on")
    return TrunkFiles(manifest, store.fetch(name, named.version))
