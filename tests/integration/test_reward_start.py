"""What a reward round starts from, and what it says of its choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.reward_bases import save_base

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

LENGTH = "64, of the 256 that the base reads (its positions): set by --reward.max-length"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base"))


def test_a_first_model_says_in_log_and_notes_what_was_chosen_for_it(base: Path, tmp_path: Path) -> None:
    settings = RewardHyperparameters.model_validate({"base": str(base), "max_length": 64, "heads": 2})
    with capture_logs() as logs:
        start = start_from(ModelStore(tmp_path), None, settings, 3)
    assert start.encoder.max_length == 64
    assert start.notes["max_length"] == LENGTH
    assert start.notes["heads"] == "new, drawn with seed 3"
    (said,) = [entry for entry in logs if entry["event"] == "first reward model"]
    assert {name: said[name] for name in start.notes} == dict(start.notes)


def test_a_first_model_reads_all_that_its_base_reads_up_to_a_bound(base: Path, tmp_path: Path) -> None:
    settings = RewardHyperparameters.model_validate({"base": str(base), "heads": 2})
    assert start_from(ModelStore(tmp_path), None, settings, 0).encoder.max_length == 256


def test_a_later_model_keeps_the_length_of_its_parent_and_the_reason(base: Path, tmp_path: Path) -> None:
    flags = ["--base", str(base), "--store", str(tmp_path), "--heads", "2", "--max-length", "64"]
    assert export_cli.main(flags) == 0
    store = ModelStore(tmp_path)
    start = start_from(store, "1", RewardHyperparameters.model_validate({"max_length": 128}), 0)
    assert start.encoder.max_length == 64
    assert start.notes["max_length"] == store.manifest("reward", 1).notes["max_length"]
    assert start.notes["max_length"] == LENGTH.replace("--reward.max-length", "--max-length")


def test_the_same_model_is_written_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    model = RewardModel.from_base(base, heads=2)
    hashes = set()
    for i in range(8):
        (tmp_path / str(i)).mkdir()
        model.save_heads(tmp_path / str(i))
        hashes.add((tmp_path / str(i) / "heads.safetensors").read_bytes())
    assert len(hashes) == 1
