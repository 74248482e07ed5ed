"""A base's own code runs only if its user says so, in the export alone, and its scores are then the standard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.head_bases import change_config, change_tensors, check_everywhere, chosen, save, sequences
from torch import nn
from transformers import AutoModelForCausalLM, dynamic_module_utils

from rewardloop.formats.store import TORCH, ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.data.base_text import UnusableBase
from rewardloop_trainer.reward.model import RewardModel

CODE = """
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaModel, PreTrainedModel, LlamaConfig
from transformers.modeling_outputs import SequenceClassifierOutput

Path({marker!r}).touch()


class OwnRewardModel(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Sequential(nn.Linear(32, 16), nn.SiLU(), nn.Linear(16, 1))
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        values = self.score({states})
        return {output}
"""
OUTPUTS = {"an output": "SequenceClassifierOutput(logits=values)", "a tuple of GRM": "(states, None, values[:, 0])"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let transformers copy the code into a directory of the test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [each for each in sys.modules if each.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def own_base(directory: Path, states: str = "states[:, -1]", output: str = OUTPUTS["an output"]) -> nn.Sequential:
    """Save a base whose class is in its own file, which leaves a file `ran` beside it when it is imported."""
    save(AutoModelForCausalLM, "llama", directory)
    torch.manual_seed(2)
    score = nn.Sequential(nn.Linear(32, 16), nn.SiLU(), nn.Linear(16, 1))
    held = {f"score.{name}": tensor.detach() for name, tensor in score.state_dict().items()}

    def to_own(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update(held)
        tensors.pop("lm_head.weight")

    change_tensors(directory, to_own)
    code = CODE.replace("{states}", states).replace("{output}", output)
    (directory / "own_model.py").write_text(code.replace("{marker!r}", repr(str(directory / "ran"))))
    auto_map = {"AutoModelForSequenceClassification": "own_model.OwnRewardModel"}
    change_config(directory, architectures=["OwnRewardModel"], auto_map=auto_map)
    return score


def test_code_of_a_base_is_refused_and_not_run_unless_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_base(tmp_path / "base")
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")]
    assert export_cli.main(flags) == 1
    said = capsys.readouterr().err
    assert "own_model.OwnRewardModel" in said
    assert "--trust-remote-code" in said
    assert export_cli.main([*flags, "--new-heads"]) == 0
    assert not (tmp_path / "base" / "ran").exists()


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_trusted_class_that_is_a_trunk_and_layers_is_exported(output: str, tmp_path: Path) -> None:
    score = own_base(tmp_path / "base", output=OUTPUTS[output])
    model = RewardModel.from_base(tmp_path / "base", heads=2, choice=chosen(trust_remote_code=True))
    assert (tmp_path / "base" / "ran").exists()
    with torch.no_grad():
        found = [score(model.trunk(input_ids=ids).last_hidden_state[:, -1])[0, 0] for ids in sequences()]
    check_everywhere(model, torch.stack(found), tmp_path)


def test_a_version_of_a_trusted_base_holds_none_of_its_code(tmp_path: Path) -> None:
    own_base(tmp_path / "base")
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store"), "--trust-remote-code"]
    assert export_cli.main(flags) == 0
    directory = ModelStore(tmp_path / "store").fetch("reward", 1)
    assert [path for path in directory.rglob("*") if path.suffix == ".py"] == []
    (tmp_path / "base" / "ran").unlink()
    assert RewardModel.load(directory / TORCH).is_decoder
    assert not (tmp_path / "base" / "ran").exists()


@pytest.mark.parametrize(
    ("states", "output", "line"),
    [
        ("states.mean(1)", OUTPUTS["an output"], r"differ from those of its own class by up to \d"),
        ("states[:, -1]", "(values, 2 * values)", "2 outputs of its own class .* have 1 values"),
        ("states[:, -1]", "undefined", "own_model.OwnRewardModel fails: name 'undefined'"),
    ],
)
def test_a_trusted_class_that_computes_otherwise_is_refused(
    states: str, output: str, line: str, tmp_path: Path
) -> None:
    own_base(tmp_path, states, output)
    with pytest.raises(UnusableBase, match=line):
        RewardModel.from_base(tmp_path, choice=chosen(trust_remote_code=True))


def test_a_trusted_class_with_tensors_that_no_head_of_ours_uses_is_refused(tmp_path: Path) -> None:
    own_base(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({"gating.weight": torch.ones(1, 32)}))
    with pytest.raises(UnusableBase, match=r"gating\.weight, score\.0\.bias"):
        RewardModel.from_base(tmp_path, choice=chosen(trust_remote_code=True))


def test_a_class_of_transformers_needs_no_code_of_a_base(tmp_path: Path) -> None:
    save(AutoModelForCausalLM, "llama", tmp_path)
    change_config(tmp_path, auto_map={"AutoModelForCausalLM": "own_model.LlamaForCausalLM"})
    assert RewardModel.from_base(tmp_path).has_new_heads
