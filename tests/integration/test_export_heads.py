"""A trained head is used as its own class uses it, or refused; only a base without one gets new heads unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.head_bases import (
    change_tensors,
    check_everywhere,
    chosen,
    forget_architecture,
    logits_of,
    save,
    scores,
    sequences,
)
from support.reward_bases import save_base, trained_delta
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.lora import load_delta, save_delta
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

NEW = chosen(new_heads=True)


def test_a_head_of_several_layers_is_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path, labels=1)

    def to_layers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["score.2.weight"] = tensors.pop("score.weight")
        tensors["score.0.weight"] = torch.ones(32, 32)

    change_tensors(tmp_path, to_layers)
    with pytest.raises(UnusableBase, match=r"lacks weights.*score\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match=r"score\.0\.weight, score\.2\.weight.*--new-heads"):
        RewardModel.from_base(tmp_path)
    assert RewardModel.from_base(tmp_path, choice=NEW).has_new_heads


def test_at_most_eight_tensors_are_named(tmp_path: Path) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path)
    heads = {f"reward_head.{i:02}.weight": torch.ones(1, 32) for i in range(11)}
    change_tensors(tmp_path, lambda tensors: tensors.update(heads))
    with pytest.raises(UnusableBase, match=r"head\.07\.weight and 3 more"):
        RewardModel.from_base(tmp_path)


ONE_LABEL = ["bert", "roberta", "distilbert", "electra", "albert", "mobilebert", "llama", "gpt2"]


@pytest.mark.parametrize("kind", ONE_LABEL)
def test_a_one_label_classifier_scores_as_its_own_class_does(kind: str, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path, labels=1)
    model = RewardModel.from_base(tmp_path, heads=3)
    assert not model.has_new_heads
    check_everywhere(model, logits_of(classifier)[:, 0], tmp_path)


@pytest.mark.parametrize("kind", [*ONE_LABEL, "modernbert"])
@pytest.mark.parametrize("labels", [1, 2])
def test_a_classifier_that_names_no_architecture_is_known_by_its_tensors(
    kind: str, labels: int, tmp_path: Path
) -> None:
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path, labels=labels)
    forget_architecture(tmp_path)
    model = RewardModel.from_base(tmp_path, heads=1)
    logits = logits_of(classifier)
    expected = logits[:, :1] if labels == 1 else logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(scores(model, sequences()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [1, 2])
def test_the_layers_before_the_last_one_of_a_decoders_classifier_are_read(labels: int, tmp_path: Path) -> None:
    classifier = save(AutoModelForSequenceClassification, "modernbert-decoder", tmp_path, labels=labels)
    logits = logits_of(classifier)
    expected = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    check_everywhere(RewardModel.from_base(tmp_path, heads=2), expected, tmp_path)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_modernbert_classifier_pools_as_its_configuration_says(pooling: str, tmp_path: Path) -> None:
    kind = AutoModelForSequenceClassification
    classifier = save(kind, "modernbert", tmp_path, labels=1, classifier_pooling=pooling)
    model = RewardModel.from_base(tmp_path, heads=2)
    torch.testing.assert_close(scores(model, sequences()), logits_of(classifier).expand(-1, 2), atol=1e-5, rtol=0)
    model.save(tmp_path / "saved")
    loaded = RewardModel.load(tmp_path / "saved")
    torch.testing.assert_close(scores(loaded, sequences()), scores(model, sequences()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "layer"), [("roberta", "dense"), ("bert", "pooler"), ("llama", "")])
def test_a_version_of_an_earlier_release_still_loads(kind: str, layer: str, tmp_path: Path) -> None:
    """Such a version named its pooling and the function of its neck, which was at most one layer."""
    classifier = save(AutoModelForSequenceClassification, kind, tmp_path / "base", labels=1)
    trunk, whole = classifier.base_model, dict(classifier.named_parameters())
    dense = {"dense": "classifier.dense", "pooler": "bert.pooler.dense", "": ""}[layer]
    last = {"roberta": "classifier.out_proj", "bert": "classifier", "llama": "score"}[kind]
    if layer == "pooler":
        trunk.pooler = None
    trunk.save_pretrained(tmp_path / "version")
    stored = {"heads.weight": whole[f"{last}.weight"], "heads.bias": whole.get(f"{last}.bias", torch.zeros(1))}
    stored |= {f"neck.{part}": whole[f"{dense}.{part}"] for part in ("weight", "bias") if dense}
    held = {name: tensor.detach().contiguous() for name, tensor in {**stored, "threshold": torch.zeros(1)}.items()}
    about = {"pooling": "last" if kind == "llama" else "cls", "activation": "tanh" if dense else ""}
    save_file(held, tmp_path / "version" / "heads.safetensors", about)
    loaded, today = RewardModel.load(tmp_path / "version"), RewardModel.from_base(tmp_path / "base", heads=1)
    torch.testing.assert_close(scores(loaded, sequences()), scores(today, sequences()), atol=1e-5, rtol=0)
    loaded.save(tmp_path / "version")
    again = RewardModel.load(tmp_path / "version")
    torch.testing.assert_close(scores(again, sequences()), scores(loaded, sequences()), atol=1e-6, rtol=0)


def test_adapters_of_a_classifier_are_a_delta_over_it(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "albert", tmp_path / "base", labels=1)
    model = RewardModel.from_base(tmp_path / "base", heads=2)
    model.save(tmp_path)
    before = scores(model, sequences())
    changed = trained_delta(model)
    after = scores(changed, sequences())
    assert ((after - before).abs() > 1e-3).all()
    save_delta(changed, tmp_path)
    loaded = load_delta(RewardModel.load(tmp_path), tmp_path)
    torch.testing.assert_close(scores(loaded, sequences()), after, atol=1e-6, rtol=0)
    changed.merge_lora()
    torch.testing.assert_close(scores(changed, sequences()), after, atol=1e-5, rtol=0)


def test_a_classifier_whose_head_computes_otherwise_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class does something to what its last layer gives."""

    def forward(self: RobertaClassificationHead, features: torch.Tensor, **_: Any) -> torch.Tensor:
        logits: torch.Tensor = 2 * self.out_proj(torch.tanh(self.dense(features[:, 0, :])))
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
        RewardModel.from_base(tmp_path, choice=NEW)


def test_an_export_says_where_the_heads_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base("bert", tmp_path / "plain")
    save(AutoModelForSequenceClassification, "llama", tmp_path / "classifier", labels=1)
    store = ModelStore(tmp_path / "store")
    expected = ("new, drawn with seed 7", "the checkpoint's")
    for version, (name, note) in enumerate(zip(("plain", "classifier"), expected, strict=True), start=1):
        flags = ["--base", str(tmp_path / name), "--store", str(tmp_path / "store"), "--seed", "7"]
        assert export_cli.main(flags) == 0
        assert f"rewardloop export: The score heads are {note}.\n" in capsys.readouterr().err
        assert store.manifest("reward", version).notes["heads"] == note


def test_export_and_trainer_take_the_same_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, store = tmp_path / "base", ModelStore(tmp_path / "store")
    save(AutoModelForSequenceClassification, "llama", base, labels=3)
    flags = ["--base", str(base), "--store", str(tmp_path / "store")]
    assert export_cli.main(flags) == 1
    assert "3 labels" in capsys.readouterr().err
    assert store.versions("reward") == []
    settings = RewardHyperparameters.model_validate({"base": str(base)})
    with pytest.raises(UnusableBase, match="3 labels"):
        start_from(store, None, settings, 0)
    accepted = RewardHyperparameters.model_validate({"base": str(base), "new_heads": True})
    assert start_from(store, None, accepted, 0).model.has_new_heads
    assert export_cli.main([*flags, "--new-heads"]) == 0
