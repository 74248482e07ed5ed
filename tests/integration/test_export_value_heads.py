"""Heads that no class of transformers has are read off their tensors, or refused by the tensors' names."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.head_bases import (
    change_config,
    change_tensors,
    check_everywhere,
    chosen,
    forget_architecture,
    last_states,
    save,
    scores,
    sequences,
)
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.model import RewardModel


def layers(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them."""
    torch.manual_seed(2)
    modules: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        modules += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def named(head: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor.detach().contiguous() for name, tensor in head.state_dict().items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", ["v_head.summary", "v_head"])
def test_a_value_head_of_trl_scores_the_last_token(kind: str, prefix: str, tmp_path: Path) -> None:
    language_model, head = save(AutoModelForCausalLM, kind, tmp_path), layers(32, 1)[0]
    change_tensors(tmp_path, lambda tensors: tensors.update(named(head, prefix)))
    model = RewardModel.from_base(tmp_path, heads=2)
    assert model.head_note == f"the checkpoint's: {prefix}"
    with torch.no_grad():
        expected = head(last_states(language_model))
    torch.testing.assert_close(scores(model, sequences()), expected.expand(-1, 2), atol=1e-5, rtol=0)
    assert RewardModel.from_base(tmp_path, choice=chosen(new_heads=True)).has_new_heads


@pytest.mark.parametrize(("prefix", "widths"), [("v_head.summary", (32, 24, 1)), ("v_head", (32, 24, 16, 1))])
def test_a_value_head_of_several_layers_scores_as_grm_does(
    prefix: str, widths: tuple[int, ...], tmp_path: Path
) -> None:
    language_model, head = save(AutoModelForCausalLM, "llama", tmp_path), layers(*widths)
    change_tensors(tmp_path, lambda tensors: tensors.update(named(head, prefix)))
    with torch.no_grad():
        expected = head(last_states(language_model))[:, 0]
    check_everywhere(RewardModel.from_base(tmp_path, heads=2), expected, tmp_path)


def test_a_value_head_in_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    language_model, head = save(AutoModelForCausalLM, "llama", tmp_path), layers(32, 1)[0]
    save_file(named(head, "v_head.summary"), tmp_path / "value_head.safetensors")
    with torch.no_grad():
        expected = head(last_states(language_model))
    model = RewardModel.from_base(tmp_path, heads=1)
    torch.testing.assert_close(scores(model, sequences()), expected, atol=1e-5, rtol=0)
    (tmp_path / "value_head.safetensors").rename(tmp_path / "value_head.bin")
    with pytest.raises(UnusableBase, match=r"value_head\.bin, a pickle"):
        RewardModel.from_base(tmp_path)


def test_a_value_head_in_one_of_several_files_is_read(tmp_path: Path) -> None:
    language_model, head = save(AutoModelForCausalLM, "llama", tmp_path), layers(32, 1)[0]
    save_file(named(head, "v_head.summary"), tmp_path / "rest.safetensors", {"format": "pt"})
    (tmp_path / "model.safetensors").rename(tmp_path / "most.safetensors")
    index = dict.fromkeys(language_model.state_dict(), "most.safetensors")
    index |= dict.fromkeys(named(head, "v_head.summary"), "rest.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with torch.no_grad():
        expected = head(last_states(language_model))
    model = RewardModel.from_base(tmp_path, heads=1)
    torch.testing.assert_close(scores(model, sequences()), expected, atol=1e-5, rtol=0)


def test_the_score_of_qwens_reward_model_is_two_layers_with_relu(tmp_path: Path) -> None:
    language_model, head = save(AutoModelForCausalLM, "qwen2", tmp_path), layers(32, 32, 1)
    change_tensors(tmp_path, lambda tensors: tensors.update(named(head, "score")))
    change_config(tmp_path, architectures=["Qwen2ForRewardModel"])
    with torch.no_grad():
        expected = head(last_states(language_model))[:, 0]
    model = RewardModel.from_base(tmp_path, heads=2)
    assert model.skips_padding
    check_everywhere(model, expected, tmp_path)


def weight(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


UNKNOWN = {
    "a layer too many": {"v_head.summary.weight": weight(1, 32), "gate.weight": weight(1, 32)},
    "another width": {"v_head.summary.weight": weight(1, 16)},
    "two values": {"v_head.summary.weight": weight(2, 32)},
    "a layer that is missing": {"v_head.summary.0.weight": weight(8, 32), "v_head.summary.4.weight": weight(1, 8)},
    "layers that do not fit": {"v_head.summary.0.weight": weight(8, 32), "v_head.summary.2.weight": weight(1, 9)},
    "a function that is not known": {"score.0.weight": weight(8, 32), "score.2.weight": weight(1, 8)},
    "no such name": {"reward_head.weight": weight(1, 32)},
    "the gating of ArmoRM": {
        "gating.layers.0.weight": weight(8, 32),
        "regression_layer.weight": weight(19, 32),
        "reward_transform_matrix": weight(19, 19),
    },
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_head_that_is_not_known_is_refused_by_the_names_of_its_tensors(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path / "base")
    change_tensors(tmp_path / "base", lambda tensors: tensors.update(UNKNOWN[case]))
    assert export_cli.main(["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in UNKNOWN[case]), said
    assert "--new-heads" in said
    assert ModelStore(tmp_path / "store").versions("reward") == []


def test_a_value_head_on_an_encoder_is_refused(tmp_path: Path) -> None:
    save(AutoModelForMaskedLM, "roberta", tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({"v_head.summary.weight": weight(1, 32)}))
    with pytest.raises(UnusableBase, match=r"v_head\.summary\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)


def test_a_classifier_of_a_decoder_with_a_value_head_beside_its_score_is_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path, labels=1)
    change_tensors(tmp_path, lambda tensors: tensors.update({"v_head.summary.weight": weight(1, 32)}))
    with pytest.raises(UnusableBase, match=r"v_head\.summary\.weight"):
        RewardModel.from_base(tmp_path)
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match=r"v_head\.summary\.weight"):
        RewardModel.from_base(tmp_path)
