"""What a reward round trains from: the live version, or a new model on a base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoder, TextFormat
from rewardloop_trainer.base_text import load_tokenizer, longest_input, text_format_of
from rewardloop_trainer.export import TOKENIZER, TORCH
from rewardloop_trainer.reward_model import RewardModel, attention_window
from rewardloop_trainer.settings import RewardHyperparameters


class NothingToStartFrom(Exception):
    """The store has no reward model and the settings name no base."""


@dataclass(frozen=True, slots=True)
class Start:
    """``model`` in evaluation mode. ``directory``: the live version's files; None for a new model."""

    model: RewardModel
    encoder: Encoder
    base: str
    directory: Path | None


def start_from(store: ModelStore, version: str | None, settings: RewardHyperparameters, seed: int) -> Start:
    """Raises `NothingToStartFrom`, the store's errors, or `UnusableBase`."""
    if version is not None:
        directory = store.fetch("reward", version)
        manifest = store.manifest("reward", version)
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        model = RewardModel.load(directory / TORCH)
        max_length = min(manifest.max_length, attention_window(model.config) or manifest.max_length)
        encoder = Encoder(tokenizer, TextFormat.from_json(manifest.text_format), max_length)
        return Start(model, encoder, manifest.base, directory)
    if not settings.base:
        raise NothingToStartFrom("the store has no reward model: export one, or set --reward.base")
    model = RewardModel.from_base(settings.base, settings.heads, settings.pooling, seed)
    of_base = load_tokenizer(settings.base)
    segment_ids = model.neck is not None and getattr(model.config, "type_vocab_size", 0) > 1
    text_format = text_format_of(of_base, is_decoder=model.is_decoder, segment_ids=segment_ids)
    max_length = min(settings.max_length, longest_input(model.config, of_base))
    return Start(model, Encoder(of_base.backend_tokenizer, text_format, max_length), settings.base, None)
