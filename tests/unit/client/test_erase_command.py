"""`rewardloop feedback erase` asks for the id that it was given, and for no other."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from rewardloop_cli.feedback import erase
from rewardloop_cli.main import app
from rewardloop_client import Feedback, TaughtVersion
from rewardloop_client.fake import FakeRewardloop


@pytest.mark.parametrize(("line", "asked"), [("user-17\n", "user-17"), (" user-17 \r\n", " user-17 "), ("a b", "a b")])
def test_an_id_from_standard_input_keeps_its_spaces(monkeypatch: pytest.MonkeyPatch, line: str, asked: str) -> None:
    given: list[str] = []

    class Asked(FakeRewardloop):
        def erase(self, *, annotator_id: str = "", **more: object) -> object:  # type: ignore[override]
            given.append(annotator_id)
            raise SystemExit(0)

    monkeypatch.setattr(erase, "open_client", lambda *_, **__: Asked())
    CliRunner().invoke(app, ["feedback", "erase", "--annotator", "-"], input=line)
    assert given == [asked]


def test_an_empty_line_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert erase._given("-") == ""


def test_dry_run_names_what_learned_and_erases_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRewardloop()
    fake.record(Feedback.tie(prompt="Q", responses=["a", "b"], annotator_id="user-17"))
    fake.taught = [TaughtVersion("reward", "2", True)]
    monkeypatch.setattr(erase, "open_client", lambda *_, **__: fake)
    found = CliRunner().invoke(app, ["feedback", "erase", "--annotator", "user-17", "--dry-run"])
    assert (found.exit_code, found.output.splitlines()) == (
        0,
        ["1 signal in the ledger; nothing was erased", "  reward 2 learned from it"],
    )
    asked = CliRunner().invoke(app, ["feedback", "erase", "--annotator", "nobody", "--dry-run", "--json"])
    assert (json.loads(asked.output)["signals"], json.loads(asked.output)["versions"]) == (0, [])
    assert CliRunner().invoke(app, ["feedback", "erase", "--erasure", "e", "--dry-run"]).exit_code == 2
    assert len(fake.events) == 1
