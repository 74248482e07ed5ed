"""What a long command says of itself: its stages, and where a run of training begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardloop_trainer.commands.progress import Beginning, Stages

_OVER = "train: starting over: an earlier run did not end, and left no checkpoint that this one can use\n"


def test_the_first_of_torchruns_processes_says_what_all_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        Stages("train")("loading torch")
    assert capsys.readouterr().err == "train: loading torch\n"


def test_a_run_says_whether_it_begins_begins_again_or_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(step: int) -> str:
        Beginning(tmp_path / "out" / "checkpoints", Stages("train"), "a linear fit")(step, 1_000)
        return capsys.readouterr().err

    assert said(0) == "train: training in 1,000 steps, after a linear fit\n"
    assert said(0) == _OVER + "train: training in 1,000 steps, after a linear fit\n"
    assert said(20) == "train: going on after step 20 of 1,000, from a checkpoint\n"
