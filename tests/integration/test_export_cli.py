"""``rewardloop export`` from the command line to a version in the store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reward_bases import config, save_base, save_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.reward.anchors import ANCHORS, Anchor, read_anchors, shipped_anchors, write_anchors
from rewardloop_trainer.reward.calibrate import anchor_logits
from rewardloop_trainer.reward.model import RewardModel


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"))


def test_a_base_becomes_a_version_whose_scores_are_on_the_anchors_scale(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anchors = [Anchor((Turn("user", f"question {i}"),), f"answer {i * i}") for i in range(70)]
    write_anchors(tmp_path / "anchors.jsonl", anchors)
    flags = ["--heads", "2", "--max-length", "64", "--anchors", str(tmp_path / "anchors.jsonl")]
    status = export_cli.main(["--base", str(base), "--store", str(tmp_path / "store"), *flags])
    assert status == 0
    store = ModelStore(tmp_path / "store")
    manifest = store.manifest("reward", 1)
    assert f"reward 1  {manifest.digest[:12]}" in capsys.readouterr().out
    assert (manifest.heads, manifest.max_length, manifest.base) == (2, 64, str(base))
    assert manifest.metrics["gate_parity"] <= 1e-4

    directory = store.fetch("reward", 1)
    model = RewardModel.load(directory / "torch")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    encoder = Encoder(tokenizer, TextFormat.from_json(manifest.text_format), manifest.max_length)
    assert read_anchors(directory / ANCHORS) == tuple(anchors)
    assert manifest.notes["anchors"].startswith("70 given (sha256 ")
    logits = anchor_logits(model, encoder, anchors)
    assert manifest.calibration is not None
    scores = manifest.calibration.scale * logits + manifest.calibration.offset
    assert scores.mean() == pytest.approx(0.0, abs=1e-5)
    assert np.std(scores) == pytest.approx(1.0, abs=1e-5)


def test_without_a_file_the_scale_is_fixed_on_the_shipped_anchors_and_lengths_are_said(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_cli.main(["--base", str(base), "--store", str(tmp_path / "store"), "--heads", "2"]) == 0
    store = ModelStore(tmp_path / "store")
    manifest, directory = store.manifest("reward", 1), store.fetch("reward", 1)
    assert read_anchors(directory / ANCHORS) == shipped_anchors().anchors
    assert ANCHORS in manifest.files
    assert manifest.calibration is not None
    assert manifest.calibration.scale != 1.0
    assert manifest.notes["anchors"].startswith("96 shipped (sha256 ")
    assert (manifest.max_length, manifest.notes["max_length"]) == (
        256,
        "256, all of the 256 that the base reads (its positions)",
    )
    said = capsys.readouterr().err
    for name in ("anchors", "max_length"):
        assert f"rewardloop export: {name}: {manifest.notes[name]}" in said


def test_too_few_anchors_are_one_line_and_no_version(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_anchors(tmp_path / "few.jsonl", [Anchor((Turn("user", f"q{i}"),), "a") for i in range(20)])
    flags = ["--base", str(base), "--store", str(tmp_path / "store"), "--anchors", str(tmp_path / "few.jsonl")]
    assert export_cli.main(flags) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"rewardloop export: {tmp_path}/few.jsonl: the model reads 20 distinct anchors of 20, and a")
    assert said.count("\n") == 1
    assert ModelStore(tmp_path / "store").versions("reward") == []


def test_a_causal_model_becomes_a_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config("llama"))
    model.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store"), "--model", "policy"]
    assert export_cli.main(flags) == 0
    directory = ModelStore(tmp_path / "store").fetch("policy", 1)
    names = {p.name for p in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "generation_config.json" in names
    notes = ModelStore(tmp_path / "store").manifest("policy", 1).notes
    assert notes["max_length"] == "256, all of the 256 that the base reads (its positions)"
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_directory_that_is_no_model_is_one_line_and_no_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"hidden": 1}))
    status = export_cli.main(["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store")])
    assert status == 1
    assert capsys.readouterr().err.startswith("rewardloop export: ")
    assert ModelStore(tmp_path / "store").versions("reward") == []


@pytest.mark.parametrize("flags", [["--heads", "0"], ["--max-length", "x"], ["--unknown"]])
def test_wrong_flags_are_refused_before_anything_is_loaded(flags: list[str], base: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        export_cli.main(["--base", str(base), "--store", str(tmp_path / "store"), *flags])
    assert refused.value.code == 2


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from rewardloop_trainer.commands import export\n"
        "try: export.main(['--help'])\n"
        "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--store" in done.stdout
