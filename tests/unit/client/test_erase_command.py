"""`rewardloop feedback erase` asks for the id that it was given, and for no other."""

from __future__ import annotations

import io

import pytest
from typer.testing import CliRunner

from rewardloop_cli.feedback import erase
from rewardloop_cli.main import app
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
