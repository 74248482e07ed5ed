"""A token classifier's score is that of the last step of an answer, or it is refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.head_bases import (
    change_config,
    change_tensors,
    check_everywhere,
    chosen,
    forget_architecture,
    last_states,
    logits_of,
    save,
)
from support.reward_bases import END
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

LAST = ["--step-scores", "last", "--step-token", "\\n"]


@pytest.mark.parametrize("labels", [1, 2])
def test_the_score_is_that_of_the_last_step(labels: int, tmp_path: Path) -> None:
    classifier = save(AutoModelForTokenClassification, "llama", tmp_path, labels=labels)
    model = RewardModel.from_base(tmp_path, heads=2, choice=chosen(step_scores="last", step_token="\n"))
    logits = logits_of(classifier)
    check_everywhere(model, logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0], tmp_path)


def test_a_token_classifier_that_names_no_architecture_is_one_if_steps_are_wanted(tmp_path: Path) -> None:
    save(AutoModelForTokenClassification, "llama", tmp_path, labels=2)
    forget_architecture(tmp_path)
    with pytest.raises(UnusableBase, match=r"score\.bias"):
        RewardModel.from_base(tmp_path)
    choice = chosen(step_scores="last", step_token="\n")
    assert RewardModel.from_base(tmp_path, choice=choice).head_note == "the checkpoint's: LABEL_1 - LABEL_0 at '\\n'"


def test_the_steps_of_qwens_process_reward_model_are_read(tmp_path: Path) -> None:
    language_model = save(AutoModelForCausalLM, "qwen2", tmp_path)
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    held = {f"score.{name}": tensor.detach() for name, tensor in head.state_dict().items()}
    change_tensors(tmp_path, lambda tensors: tensors.update(held))
    change_config(tmp_path, architectures=["Qwen2ForProcessRewardModel"])
    with pytest.raises(UnusableBase, match="--step-scores last"):
        RewardModel.from_base(tmp_path)
    model = RewardModel.from_base(tmp_path, heads=1, choice=chosen(step_scores="last", step_token="<end>"))
    assert not model.skips_padding
    with torch.no_grad():
        steps = head(last_states(language_model))
    check_everywhere(model, steps[:, 1] - steps[:, 0], tmp_path)


@pytest.mark.parametrize(("flag", "number"), [("\\n", None), ("<end>", END), (str(END), END)])
def test_an_answer_ends_with_the_step_token_alone(flag: str, number: int | None, tmp_path: Path) -> None:
    save(AutoModelForTokenClassification, "llama", tmp_path / "base", labels=2)
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]
    assert export_cli.main([*flags, "--step-scores", "last", "--step-token", flag]) == 0
    manifest = ModelStore(tmp_path / "store").manifest("reward", 1)
    (suffix,) = manifest.text_format["response"]["suffix"]
    assert number is None or suffix == number
    settings = {"base": str(tmp_path / "base"), "step_scores": "last", "step_token": flag}
    started = start_from(ModelStore(tmp_path / "none"), None, RewardHyperparameters.model_validate(settings), 0)
    assert started.encoder.format.to_json() == manifest.text_format


@pytest.mark.parametrize(
    ("kind", "flags", "line"),
    [
        ("llama", [], r"score\.weight scores every token: --step-scores last --step-token TOKEN"),
        ("llama", ["--step-scores", "last"], "needs --step-token"),
        ("llama", ["--step-scores", "last", "--step-token", "two words"], "is 9 tokens"),
        (
            "llama",
            ["--step-scores", "min", "--step-token", "a"],
            "--step-scores min is not exported, because the graph",
        ),
        ("llama", ["--step-scores", "mean", "--step-token", "a"], "--step-scores mean is not exported"),
        ("llama", ["--step-scores", "product", "--step-token", "a"], "--step-scores product is not exported"),
        ("bert", LAST, r"token classifier on an encoder, whose classifier\.weight scores every token"),
    ],
)
def test_what_cannot_be_read_is_refused(
    kind: str, flags: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(AutoModelForTokenClassification, kind, tmp_path / "base", labels=2)
    assert export_cli.main(["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store"), *flags]) == 1
    said = capsys.readouterr().err
    assert line.replace("\\", "") in said
    assert ModelStore(tmp_path / "store").versions("reward") == []


def test_steps_of_another_kind_of_classifier_are_refused(tmp_path: Path) -> None:
    save(AutoModelForSequenceClassification, "llama", tmp_path, labels=1)
    with pytest.raises(UnusableBase, match="--step-scores is for token classifiers, and this is LlamaForSequence"):
        RewardModel.from_base(tmp_path, choice=chosen(step_scores="last", step_token="a"))
