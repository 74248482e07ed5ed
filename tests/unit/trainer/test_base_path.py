"""A mistyped path of a base is refused at once, and a hub id is left to the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardloop_trainer.commands.base_path import check_base_path
from rewardloop_trainer.data.base_text import UnusableBase


@pytest.mark.parametrize("base", ["/nowhere/at/all", "./base", "../base", "~/base", "models/own/base", "models/bas"])
def test_a_path_without_anything_there_is_refused(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UnusableBase, match=f"^{base}: there is no such directory"):
        check_base_path(base)


@pytest.mark.parametrize("base", ["models/base", "./models/base", ".", "owner/name", "name"])
def test_a_directory_and_a_hub_id_are_taken(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_base_path(base)


def test_an_absolute_directory_is_taken(tmp_path: Path) -> None:
    check_base_path(str(tmp_path))
