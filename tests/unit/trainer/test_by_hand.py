"""Commands that train one model by hand end with one line of text and the exit status that says how it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_trainer.commands.by_hand import Unpublishable, conclude, finish


class _Known(Exception):
    pass


def _raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_a_command_ends_with_the_status_of_its_work() -> None:
    assert finish("train", lambda: 1, ()) == 1


@pytest.mark.parametrize("error", [_Known("no\nrows"), ValueError("no\nrows"), OSError("no\nrows")])
def test_a_known_failure_is_told_line_by_line_in_the_commands_name(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish("train", _raising(error), (_Known,)) == 2
    assert capsys.readouterr().err == "train: no\ntrain: rows\n"


def test_a_bug_is_raised() -> None:
    with pytest.raises(_Known):
        finish("train", _raising(_Known()), ())


def test_an_interrupted_command_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert finish("train", _raising(KeyboardInterrupt()), ()) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


@dataclass(frozen=True)
class _Settings:
    store: str
    publish: bool = True
    signing_key: str = ""


def test_a_version_that_the_gate_refuses_is_published_by_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = conclude(_Settings(str(tmp_path)), "run", tmp_path, ["it is longer"], lambda: Manifest("policy"))
    said = capsys.readouterr()
    assert (ended, said.out, said.err) == (1, "the gate would refuse it: it is longer\n", "not published\n")
    assert ModelStore(str(tmp_path)).versions("policy") == []


def test_a_version_that_nobody_asked_to_publish_ends_well(tmp_path: Path) -> None:
    assert conclude(_Settings(str(tmp_path), publish=False), "run", tmp_path, ["bad"], lambda: Manifest("policy")) == 0


def test_a_version_that_cannot_be_served_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def manifest() -> Manifest:
        raise Unpublishable("it answers otherwise than transformers")

    assert conclude(_Settings(str(tmp_path)), "run", tmp_path, (), manifest) == 1
    assert capsys.readouterr().err == "not published: it answers otherwise than transformers\n"


def test_the_same_run_publishes_one_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    store = tmp_path / "store"
    for _ in range(2):
        assert conclude(_Settings(str(store)), "run", files, (), lambda: Manifest("policy")) == 0
    assert [str(v) for v in ModelStore(str(store)).versions("policy")] == ["1"]
    assert "`rewardloop models promote policy 1` serves it" in capsys.readouterr().out
