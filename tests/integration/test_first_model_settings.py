"""Settings of a first reward model, given to a trainer whose store has one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.trainers import Archiver

from rewardloop.formats.store import Manifest, ModelStore


def _log_of(tmp_path: Path, redis_url: str, *args: str) -> tuple[int, str]:
    trainer = Archiver(tmp_path, redis_url, "trainer", "--once", *args)
    status = trainer.start().wait(60)
    return status, trainer.log


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--reward.base", "org/other"), "was made from org/first, not from org/other"),
        (("--reward.heads", "2"), "has 4 score heads, not 2"),
        (("--reward.max-length", "64"), "reads 128 tokens, not 64"),
    ],
)
def test_a_setting_that_the_store_would_make_ignored_ends_the_trainer(
    tmp_path: Path, redis_url: str, args: tuple[str, ...], named: str
) -> None:
    manifest = Manifest("reward", base="org/first", heads=4, max_length=128)
    ModelStore(tmp_path / "models").publish(manifest, lambda directory: None)
    status, log = _log_of(tmp_path, redis_url, *args)
    assert status == 1
    assert f"{args[0]} would be ignored: reward version 1 is live and {named}" in log
    assert "rewardloop export --model reward" in log


def test_settings_that_fit_the_live_version_start_the_trainer_again(tmp_path: Path, redis_url: str) -> None:
    manifest = Manifest("reward", base="org/first", heads=4, max_length=128)
    ModelStore(tmp_path / "models").publish(manifest, lambda directory: None)
    fitting = ("--reward.base", "org/first", "--reward.heads", "4", "--reward.max-length", "128")
    status, log = _log_of(tmp_path, redis_url, *fitting, "--reward.pooling", "cls")
    assert status == 0
    assert "settings of a first reward model have no effect: there is one" in log
    assert "pooling" in log
