"""`rewardloop config show`: what it prints, and that it needs no heavy package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rewardloop.process.process_table import PROCESSES
from rewardloop_cli.config_show import run


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, dict[str, object]]]:
    assert run([*arguments, "--json"]) == 0
    found: dict[str, dict[str, dict[str, object]]] = json.loads(capsys.readouterr().out)
    return found


def test_every_process_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys)
    assert list(found) == [process.name for process in PROCESSES]
    assert found["serve"]["listen"] == {"value": "127.0.0.1:50051", "from": "default"}
    assert found["sft"]["base"] == {"value": None, "from": "required, not set"}


def test_one_process_is_shown_with_flags_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.toml"
    file.write_text("[policy]\nbeta = 0.5\n")
    monkeypatch.setenv("REWARDLOOP_STORE", "s3://models")
    monkeypatch.setenv("REWARDLOOP_TOKEN", "pa55")
    found = _json(capsys, "train", "--changed", "--config", str(file), "--reward.epochs", "3")
    assert found == {
        "train": {
            "token": {"value": "***", "from": "environment REWARDLOOP_TOKEN"},
            "store": {"value": "s3://models", "from": "environment REWARDLOOP_STORE"},
            "reward.epochs": {"value": 3, "from": "flag --reward.epochs"},
            "policy.beta": {"value": 0.5, "from": f"file {file}"},
        }
    }


def test_a_number_that_json_does_not_have_is_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--json", "--reward.learning-rate", "inf"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["train"]["reward.learning_rate"]["value"] == "inf"


def test_the_table_has_a_line_for_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--changed", "--store", "here"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["rewardloop", "serve"],
        ["store", "here", "flag", "--store"],
    ]
    assert run(["serve", "--changed"]) == 0
    assert "every setting has its default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serv"], f"serv is not one of {', '.join(process.name for process in PROCESSES)}"),
        (["--store", "here"], "name the PROCESS before its flags"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


def test_a_wrong_setting_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["serve", "--metrics-port", "-1"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "REWARDLOOP_METRICS_PORT" in line


def test_it_imports_nothing_heavy() -> None:
    program = """
import sys
from rewardloop_cli.config_show import run
assert run(["--json"]) == 0
print(sorted({"torch", "onnxruntime", "transformers", "pyarrow", "numpy", "redis", "grpc"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
