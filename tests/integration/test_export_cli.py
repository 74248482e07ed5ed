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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rewardloop.formats.affix_layout import TextFormat
from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Encoder, Turn
from rewardloop.formats.vocabulary import UNTRAINED_HEADS_NOTE
from rewardloop.process.settings_help import help_text
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.commands.export_settings import ExportSettings
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
    for start, name in (
        ("The scale of scores is fixed on these anchors", "anchors"),
        ("Prompt and response together have at most these tokens", "max_length"),
        ("Parity", "parity"),
    ):
        assert f"rewardloop export: {start}: {manifest.notes[name]}." in said
    assert "differs from torch's by at most" in manifest.notes["parity"]
    assert said.splitlines()[-1] == f"rewardloop export: WARNING: {manifest.notes[UNTRAINED_HEADS_NOTE]}."


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
    assert notes["parity"].startswith("the worker gives the first 4 tokens of the answers to 3 prompts")
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_an_encoder_is_no_policy_and_the_line_says_so(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_cli.main(["--base", str(base), "--store", str(tmp_path / "store"), "--model", "policy"]) == 1
    assert "bert is no causal language model, so it cannot write answers" in capsys.readouterr().err


def test_tensors_that_a_policy_does_not_use_are_a_sentence_and_no_table(tmp_path: Path) -> None:
    tied = config("llama")
    tied.tie_word_embeddings = True
    AutoModelForSequenceClassification.from_config(tied).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    flags = ["--base", str(tmp_path / "base"), "--store", str(tmp_path / "store"), "--model", "policy"]
    command = [sys.executable, "-m", "rewardloop_trainer.commands.export", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unused = "rewardloop export: The checkpoint has tensors that a policy does not use: score.weight."
    assert unused in done.stderr.splitlines()
    assert all(line.startswith("rewardloop export: ") for line in done.stderr.splitlines())


def test_a_graph_that_is_not_there_is_said_so(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base", str(base), "--store", str(tmp_path / "store"), "--onnx", str(tmp_path / "no.onnx")]
    assert export_cli.main(flags) == 1
    assert capsys.readouterr().err == f"rewardloop export: {tmp_path}/no.onnx: there is no such file\n"


def test_help_lists_the_flags_of_heads_and_layouts() -> None:
    shown = help_text(ExportSettings, "rewardloop export", show_all=False)
    for flag in ("--layout", "--heads", "--new-heads", "--label-weights", "--step-scores", "--step-token", "--onnx"):
        assert f"{flag} " in shown


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
