"""A reward model whose tokens and phrases have weights of their own scores in ONNX as in torch, alone and in trees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.reward_bases import encoder_for, mixed_sequences, save_base

from rewardloop.formats.store import MODEL, TORCH
from rewardloop_reward.phrases import phrases_of
from rewardloop_trainer.export.parity import PARITY_TOLERANCE, check_parity, export_reward
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.lora import as_delta
from rewardloop_trainer.reward.model import RewardModel


def with_words(kind: str, directory: Path) -> RewardModel:
    model = RewardModel.from_base(save_base(kind, directory / "base"), heads=3)
    with torch.no_grad():
        for table in (model.add_words(), model.add_phrases()):
            table.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_the_graph_gives_the_logits_of_torch(kind: str, tmp_path: Path) -> None:
    model, encoder = with_words(kind, tmp_path), encoder_for(kind)
    export_reward(model, encoder.tokenizer, encoder.format, tmp_path / "version")
    sequences = mixed_sequences(encoder, 60)
    assert check_parity(tmp_path / "version" / MODEL, model, sequences, encoder.format.pad) <= PARITY_TOLERANCE


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_stored_model_has_words_and_phrases_again(kind: str, tmp_path: Path) -> None:
    model, encoder = with_words(kind, tmp_path), encoder_for(kind)
    (tmp_path / TORCH).mkdir()
    model.save(tmp_path / TORCH)
    sequences, pad = mixed_sequences(encoder, 8), encoder.format.pad
    with torch.no_grad():
        stored = RewardModel.load(tmp_path / TORCH)
        assert torch.equal(logits_of(stored, sequences, pad, 2048), logits_of(model, sequences, pad, 2048))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_token_counts_and_each_phrase_once_and_no_padding(kind: str, tmp_path: Path) -> None:
    model, encoder = with_words(kind, tmp_path), encoder_for(kind)
    plain = RewardModel.load(_saved_without_words(model, tmp_path))
    sequences, pad = mixed_sequences(encoder, 6), encoder.format.pad
    words, phrases = model.add_words().weight, model.add_phrases().weight
    with torch.no_grad():
        added = logits_of(model, sequences, pad, 10_000) - logits_of(plain, sequences, pad, 10_000)
    expected = torch.stack([words[s.ids].sum(0) + phrases[phrases_of(s.ids)].sum(0) for s in sequences])
    assert any(len(phrases_of(s.ids)) < 2 * len(s.ids) for s in sequences)  # some phrase is there twice
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-4)


def test_a_delta_leaves_words_and_phrases_to_its_graph(tmp_path: Path) -> None:
    model = with_words("llama", tmp_path)
    as_delta(model, LoraSettings.model_validate({}))
    assert {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name} == {
        "heads.weight",
        "heads.bias",
        "threshold",
    }


def _saved_without_words(model: RewardModel, directory: Path) -> Path:
    (words, model.words), (phrases, model.phrases) = (model.words, None), (model.phrases, None)
    (directory / "plain").mkdir()
    model.save(directory / "plain")
    model.words, model.phrases = words, phrases
    return directory / "plain"
