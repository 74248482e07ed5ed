"""``rewardloop audit``: from a ledger and a version of the store to a page, JSON and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.crowd_worlds import WORDS, Crowd, World
from support.tiny_encoder import save_tiny_encoder

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.commands.audit.command import main
from rewardloop_trainer.commands.export import main as export


def leaning(events: list[feedback_pb2.FeedbackEvent]) -> list[feedback_pb2.FeedbackEvent]:
    """Everybody sees the responses in the order of their names, or the other way round, and takes the first."""
    for i, event in enumerate(events):
        first = i % 2
        event.display_order.extend([first, 1 - first])
        event.choice.chosen, event.choice.rejected = first, 1 - first
    return events


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    events = leaning(World(0, pairs=60).judged(Crowd(people=12, votes=3)))
    rows = [Recorded(f"{1_700_000_000_000 + i}-0", event) for i, event in enumerate(events)]
    Ledger(tmp_path / "ledger").append(rows)
    return tmp_path / "ledger"


def test_a_ledger_and_a_version_are_audited(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny_encoder(tmp_path / "base", words=[*WORDS, "question"])
    assert export(["--base", str(base), "--store", str(tmp_path / "store"), "--max-length", "64"]) == 0
    capsys.readouterr()
    out, metrics = tmp_path / "audit", tmp_path / "audit.prom"
    flags = ["--archive", str(ledger), "--store", str(tmp_path / "store"), "--version", "1", "--output", "json"]
    assert main([*flags, "--out", str(out), "--metrics-file", str(metrics), "--probed", "10"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert any("take the response they see first" in each for each in said["findings"])
    assert said["figures"]["first_leaning"] == pytest.approx(1)
    assert "model_accuracy" in said["figures"]
    assert json.loads((out / "report.json").read_text())["figures"]["signals"] == 180
    assert "What the model makes of form alone" in (out / "report.html").read_text()
    assert 'rewardloop_audit{figure="first_leaning"} 1.0' in metrics.read_text()


def test_a_named_model_is_audited_on_the_signals_of_its_aspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = leaning(World(0, pairs=60).judged(Crowd(people=12, votes=3)))
    for i, event in enumerate(events):
        event.aspect = "helpful" if i % 3 else ""
    Ledger(tmp_path / "ledger").append([Recorded(f"{1_700_000_000_000 + i}-0", e) for i, e in enumerate(events)])
    base = save_tiny_encoder(tmp_path / "base", words=[*WORDS, "question"])
    common = ["--base", str(base), "--store", str(tmp_path / "store"), "--max-length", "64"]
    assert export([*common, "--model", "helpful"]) == 0
    capsys.readouterr()
    flags = ["--archive", str(tmp_path / "ledger"), "--store", str(tmp_path / "store"), "--output", "json"]
    flags += ["--out", str(tmp_path / "audit"), "--probed", "10"]
    assert main([*flags, "--model", "helpful", "--version", "1"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["figures"]["signals"] == 120
    assert "model_accuracy" in said["figures"]
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["facts"]["model"] == "helpful 1"
    assert main([*flags]) == 1
    assert json.loads(capsys.readouterr().out)["figures"]["signals"] == 60
    assert main([*flags, "--version", "1"]) == 2  # reward has no version


def test_what_cannot_be_audited_is_said_in_one_line(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q", "chosen": "a"}\n')
    assert main(["--data", str(rows), "--out", str(tmp_path / "audit")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"rewardloop audit: {rows}: no row has a known shape")
    assert main(["--archive", str(ledger), "--store", str(tmp_path / "none"), "--version", "3"]) == 2
    assert main(["--archive", str(ledger), "--model", "helpful", "--out", str(tmp_path / "audit")]) == 2
    assert "has no signal of helpful to audit" in capsys.readouterr().err
    assert main(["--archive", str(tmp_path / "empty"), "--out", str(tmp_path / "audit")]) == 2
    assert f"{tmp_path / 'empty'}: there is no ledger, or no signal in it" in capsys.readouterr().err
