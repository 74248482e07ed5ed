"""`rewardloop models list` prints whole figures, however narrow the terminal is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop.formats.storing.evaluated import Evaluated
from rewardloop_cli.models import list_versions


def test_a_narrow_terminal_shows_digests_and_figures_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    store = ModelStore(tmp_path)
    made = store.publish(Manifest("policy", metrics={"gate_win_rate": 0.711}), lambda directory: None)
    name = "length_controlled_win_rate"
    figures = {name: 0.548, f"{name}_lower": 0.29, f"{name}_upper": 0.783}
    store.evaluated.keep("policy", made.version, Evaluated(made.digest, 1.0, "policy 1", figures))
    assert list_versions("", None, store=str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    columns = list(
        zip(
            *(
                [cell.strip() for cell in line[1:-1].split("\N{BOX DRAWINGS LIGHT VERTICAL}")]
                for line in printed.splitlines()
                if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}")
            ),
            strict=True,
        )
    )
    assert "".join(columns[5]) == made.digest[:12]
    assert "".join(columns[7]).replace(" ", "") == "lengthcontrolledwinrate0.548(0.290to0.783)"
