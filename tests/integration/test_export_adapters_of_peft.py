"""A directory of the library PEFT is exported as the model that its adapters make of their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.reward_bases import config, save_tokenizer
from transformers import AutoModelForSequenceClassification

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.reward.adapter_base import merged_base
from rewardloop_trainer.reward.model import RewardModel

IDS = torch.tensor([[5, 9, 7, 8, 30, 31]])


def save_adapters(directory: Path) -> Any:
    """Write a base with a random head, and beside it adapters and another head, trained over that base."""
    chosen = config("llama")
    chosen.num_labels = 1
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(chosen)
    base.save_pretrained(directory / "base")
    save_tokenizer(directory / "base")
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    trained: Any = get_peft_model(base, lora)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    about = trained.peft_config["default"]
    about.base_model_name_or_path = str(directory / "base")
    trained.save_pretrained(directory / "adapters")
    return trained.eval()


def test_adapters_and_the_head_saved_with_them_are_merged(tmp_path: Path) -> None:
    trained = save_adapters(tmp_path)
    with merged_base(str(tmp_path / "adapters")) as whole:
        model = RewardModel.from_base(whole, heads=2)
    with torch.no_grad():
        expected = trained(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        with trained.disable_adapter():
            plain = trained(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        torch.testing.assert_close(model(IDS, torch.ones_like(IDS)), expected.expand(-1, 2), atol=1e-5, rtol=0)
    assert (expected - plain).abs().max() > 0.05


def test_a_version_made_of_adapters_names_their_directory(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    flags = ["--base", str(tmp_path / "adapters"), "--store", str(tmp_path / "store"), "--model", "reward"]
    assert export_cli.main(flags) == 0
    manifest = ModelStore(tmp_path / "store").manifest("reward", 1)
    assert manifest.base == str(tmp_path / "adapters")
    assert manifest.notes["heads"] == "the checkpoint's"


def test_adapters_without_their_base_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapters(tmp_path)
    path = tmp_path / "adapters" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    capsys.readouterr()
    flags = ["--base", str(tmp_path / "adapters"), "--store", str(tmp_path / "store"), "--model", "reward"]
    assert export_cli.main(flags) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "gone' that adapter_config.json names cannot be read; put it there, or change the name" in line
