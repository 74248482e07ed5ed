"""A trained head is used as its own class uses it, or refused; only a base without one gets new heads unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.reward_bases import config, save_base, save_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
)
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

SIZE: dict[str, Any] = {"vocab_size": 260, "pad_token_id": 0, "max_position_embeddings": 128}
TOWER: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}


def config_of(kind: str) -> PretrainedConfig:
    match kind:
        case "electra":
            return ElectraConfig(**SIZE, **TOWER, embedding_size=16)
        case "distilbert":
            return DistilBertConfig(vocab_size=260, dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=0)
        case "modernbert":
            return ModernBertConfig(**SIZE, **TOWER, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    return config(kind)


def save(auto: Any, kind: str, directory: Path, labels: int | None = None) -> Any:
    """Save a model whose weights all differ from those that a class draws. Returns it."""
    chosen = config_of(kind)
    if labels is not None:
        chosen.num_labels = labels
    torch.manual_seed(1)
    model = auto.from_config(chosen).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def forget_architecture(directory: Path) -> None:
    written = json.loads((directory / "config.json").read_text())
    for key in ("architectures", "id2label", "label2id"):
        written.pop(key, None)
    (directory / "config.json").write_text(json.dumps(written))


def test_a_value_head_of_trl_is_refused_by_name_unless_new_heads_are_wanted(tmp_path: Path) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path)
    value_head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    change_tensors(tmp_path, lambda tensors: tensors.update(value_head))
    with pytest.raises(UnusableBase, match=r"v_head\.summary\.bias, v_head\.summary\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)
    assert RewardModel.from_base(tmp_path, new_heads=True).has_new_heads


def test_a_head_of_several_layers_is_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path, labels=1)

    def to_layers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["score.2.weight"] = tensors.pop("score.weight")
        tensors["score.0.weight"] = torch.ones(32, 32)

    change_tensors(tmp_path, to_layers)
    with pytest.raises(UnusableBase, match=r"lacks weights.*score\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match=r"score\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)
    assert RewardModel.from_base(tmp_path, new_heads=True).has_new_heads


def test_at_most_eight_tensors_are_named(tmp_path: Path) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path)
    heads = {f"reward_head.{i:02}.weight": torch.ones(1, 32) for i in range(11)}
    change_tensors(tmp_path, lambda tensors: tensors.update(heads))
    with pytest.raises(UnusableBase, match=r"head\.07\.weight and 3 more"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_with_several_labels_is_refused(kind: str, labels: int, tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, kind, tmp_path, labels=labels)
    with pytest.raises(UnusableBase, match=f"{labels} labels.*--new-heads"):
        RewardModel.from_base(tmp_path)
    assert RewardModel.from_base(tmp_path, new_heads=True).has_new_heads
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match="--new-heads"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_token_classifier_is_refused(kind: str, tmp_path: Path) -> None:
    save(AutoModelForTokenClassification, kind, tmp_path, labels=1)
    with pytest.raises(UnusableBase, match=r"(classifier|score)\.weight"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "llama", "gpt2"])
@pytest.mark.parametrize("named", [True, False])
def test_a_one_label_classifier_scores_as_its_own_class_does(kind: str, named: bool, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path, labels=1)
    if not named:
        forget_architecture(tmp_path)
    model = RewardModel.from_base(tmp_path, heads=3)
    assert not model.has_new_heads
    generator = torch.Generator().manual_seed(0)
    for length in (2, 9, 40):
        ids = torch.randint(1, 260, (1, length), generator=generator)
        with torch.no_grad():
            theirs = classifier(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            torch.testing.assert_close(model(ids, torch.ones_like(ids)), theirs.expand(-1, 3), atol=1e-5, rtol=0)
    model.save(tmp_path / "saved")
    loaded = RewardModel.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))


def test_a_classifier_whose_head_computes_otherwise_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers have the names of a known head, and its class applies another function between them."""

    def forward(self: RobertaClassificationHead, features: torch.Tensor, **_: Any) -> torch.Tensor:
        logits: torch.Tensor = self.out_proj(torch.sin(self.dense(features[:, 0, :])))
        return logits

    save(AutoModelForSequenceClassification, "roberta", tmp_path, labels=1)
    assert not RewardModel.from_base(tmp_path).has_new_heads
    monkeypatch.setattr(RobertaClassificationHead, "forward", forward)
    with pytest.raises(UnusableBase, match=r"differ from those of its own class by up to \d.*--new-heads"):
        RewardModel.from_base(tmp_path)


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        (AutoModelForCausalLM, "llama"),
        (AutoModelForCausalLM, "gpt2"),
        (AutoModelForPreTraining, "bert"),
        (AutoModelForPreTraining, "electra"),
        (AutoModelForMaskedLM, "electra"),
        (AutoModelForMaskedLM, "roberta"),
        (AutoModelForMaskedLM, "distilbert"),
        (AutoModelForMaskedLM, "modernbert"),
    ],
)
def test_a_base_with_heads_of_pretraining_alone_gets_new_ones(auto: Any, kind: str, tmp_path: Path) -> None:
    save(auto, kind, tmp_path)
    assert RewardModel.from_base(tmp_path).has_new_heads


def test_a_checkpoint_that_lacks_weights_of_the_trunk_is_refused(tmp_path: Path) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UnusableBase, match=r"lacks weights of LlamaModel.*: layers\.1\.mlp\.up_proj\.weight"):
        RewardModel.from_base(tmp_path, new_heads=True)


def test_an_export_says_where_the_heads_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base("bert", tmp_path / "plain")
    save(AutoModelForSequenceClassification, "llama", tmp_path / "classifier", labels=1)
    store = ModelStore(tmp_path / "store")
    expected = ("new, drawn with seed 7", "the checkpoint's")
    for version, (name, note) in enumerate(zip(("plain", "classifier"), expected, strict=True), start=1):
        flags = ["--base", str(tmp_path / name), "--store", str(tmp_path / "store"), "--seed", "7"]
        assert export_cli.main(flags) == 0
        assert f"rewardloop export: heads: {note}\n" in capsys.readouterr().err
        assert store.manifest("reward", version).notes["heads"] == note


def test_export_and_trainer_take_the_same_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, store = tmp_path / "base", ModelStore(tmp_path / "store")
    save(AutoModelForSequenceClassification, "llama", base, labels=2)
    flags = ["--base", str(base), "--store", str(tmp_path / "store")]
    assert export_cli.main(flags) == 1
    assert "2 labels" in capsys.readouterr().err
    assert store.versions("reward") == []
    settings = RewardHyperparameters.model_validate({"base": str(base)})
    with pytest.raises(UnusableBase, match="2 labels"):
        start_from(store, None, settings, 0)
    accepted = RewardHyperparameters.model_validate({"base": str(base), "new_heads": True})
    assert start_from(store, None, accepted, 0).model.has_new_heads
    assert export_cli.main([*flags, "--new-heads"]) == 0
