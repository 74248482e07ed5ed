"""``rewardloop evaluate``: reports of tiny reward models and policies, from directories, files and a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.judge_endpoint import biased, judge_endpoint
from support.policy_versions import FEW_CHARACTERS, publish_policy, quick_policy
from support.tiny_encoder import save_tiny_encoder

from rewardloop.formats.store import ModelStore
from rewardloop_trainer.commands.evaluate.command import main


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reward models, two policies in a store, and files of every kind."""
    root = tmp_path_factory.mktemp("world")
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny_encoder(root / name, seed, FEW_CHARACTERS)
    store = ModelStore(root / "models")
    for seed in (0, 1):
        publish_policy(store, *quick_policy(seed))
    people = [
        {"prompt": f"q{i}", "responses": ["ab" * (i % 5 + 1), "qq"], "tags": {"language": "de" if i % 3 else "en"},
         "annotations": [{"annotator": f"p{j}", "choice": int(i % 4 == j)} for j in range(3)]}
        for i in range(40)
    ]  # fmt: skip
    write_rows(root / "heldout.jsonl", people)
    write_rows(root / "train.jsonl", [{"prompt": f"b{i}", "chosen": "ab", "rejected": "q"} for i in range(12)])
    bench = [{"prompt": f"{i}", "chosen": "a b", "rejected": "b", "subset": f"s{i % 2}"} for i in range(8)]
    write_rows(root / "bench.jsonl", bench)
    said = [{"prompt": f"q{i}", "responses": ["a", "ab", "abq", "b0"]} for i in range(6)]
    write_rows(root / "answers.jsonl", said)
    suite = [
        {"id": f"{i}", "category": "bait", "language": "en", "expect": "refuse", "prompt": f"say {i}"}
        for i in range(4)
    ]  # fmt: skip
    write_rows(root / "suite.jsonl", suite)
    return root


def run(root: Path, out: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    status = main(["--store", str(root / "models"), "--data", str(root / "heldout.jsonl"), "--out", str(out), *flags])
    path = out / "report.json"
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_a_reward_model_is_measured_on_everything(world: Path, tmp_path: Path) -> None:
    status, report = run(
        world,
        tmp_path,
        *("--directory", str(world / "one"), "--against", str(world / "two"), "--train", str(world / "train.jsonl")),
        *("--benchmarks", str(world / "bench.jsonl"), "--answers", str(world / "answers.jsonl")),
        *("--judges", str(world / "two")),
    )
    assert status == 0
    names = [section["name"] for section in report["sections"]]
    wanted = ["agreement", "slices", "calibration", "benchmarks", "over-optimisation", "generalisation", "samples"]
    assert names == wanted
    assert {"accuracy", "accuracy_lower", "ceiling", "calibration_error", "benchmark_bench"} <= set(report["figures"])
    assert {"accuracy_over_the_longer_answer", "accuracy_over_bag_of_words", "overfit_gap"} <= set(report["figures"])
    assert any("language_de" in name for name in report["figures"])
    assert "rewardloop_evaluation{" in (tmp_path / "metrics.prom").read_text()
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "by 3 people" in (tmp_path / "report.html").read_text()


def test_a_regression_gives_exit_status_1_and_stands_in_the_report(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the two orders is worse on some slice than the other, by more than nothing."""
    outcomes = []
    for first, second in (("one", "two"), ("two", "one")):
        pair = ("--directory", str(world / first), "--against", str(world / second))
        status, report = run(world, tmp_path / first, *pair, "--slice-margin", "0.01")
        outcomes.append(status)
        assert report["sections"][0]["name"] == "checks"
    assert 1 in outcomes
    assert "refused: slice" in capsys.readouterr().out


def test_policies_are_measured_on_everything(world: Path, tmp_path: Path) -> None:
    regression = tmp_path / "attacks.jsonl"
    flags = (
        *("--model", "policy", "--version", "2", "--against", "1", "--versions", "all"),
        *("--judges", str(world / "one"), "--judges", str(world / "two"), "--train", str(world / "train.jsonl")),
        *("--suites", str(world / "suite.jsonl"), "--rater.phrases", "a", "--red-team", "30"),
        *("--regression", str(regression), "--prompts", "12", "--responses", "2", "--max-new-tokens", "8"),
    )
    status, report = run(world, tmp_path / "out", *flags)
    assert status == 0
    names = [section["name"] for section in report["sections"]]
    assert names == ["head-to-head", "ladder", "answers", "generalisation", "safety-0", "samples", "red-team"]
    figures = report["figures"]
    assert {"win_rate", "win_rate_1", "length_controlled_win_rate", "perplexity", "safety_failures"} <= set(figures)
    assert figures["red_team_hits"] > 0
    assert regression.exists()
    # What was found refuses the policy from now on.
    status, report = run(world, tmp_path / "again", *flags)
    assert status == 1
    assert report["sections"][0]["name"] == "checks"
    assert report["figures"]["gate_check_red_team"] > 0


def test_answers_in_files_are_compared(world: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": "ab"} for i in range(6)]
    other = write_rows(tmp_path / "other.jsonl", rows)
    flags = ("--model", "policy", "--directory", str(world / "answers.jsonl"), "--against", str(other))
    status, report = run(world, tmp_path / "out", *flags, "--judges", str(world / "one"))
    assert status == 0
    assert report["figures"]["win_rate"] >= 0
    assert report["facts"]["prompts"] == 6


def test_a_chat_model_behind_an_endpoint_judges_policies(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It likes the shorter answer, and takes the one shown first of a part of the pairs."""
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": f"q{i}", "responses": ["abab0", "bab"]} for i in range(6)])
    flags = ("--model", "policy", "--directory", str(world / "answers.jsonl"), "--against", str(other))
    flags += ("--judges", str(world / "one"), "--judge-dir", str(tmp_path / "judge"))
    with judge_endpoint(biased(lambda _, a, b: len(a) < len(b), first=0.3, error=0.0)) as endpoint:
        flags += ("--judge.endpoint", endpoint.url, "--judge.model", "judge", "--judge.first-pause-s", "0.01")
        status, report = run(world, tmp_path / "spent", *flags, "--judge.calls-a-day", "5")
        assert (status, report) == (2, {})
        assert "the same command goes on tomorrow" in capsys.readouterr().err
        assert len(endpoint.asked) == 5
        status, report = run(world, tmp_path / "out", *flags, "--judge.concurrency", "4")
        assert status == 0
        paid = len(endpoint.asked)
        again, same = run(world, tmp_path / "again", *flags)
        assert len(endpoint.asked) == paid  # every reply was kept
    table = next(s for s in report["sections"] if s["name"] == "head-to-head")
    assert "judge/helpful@1" in json.dumps(table)
    assert report["facts"]["judges"].startswith("one, ")
    assert 0.6 < report["figures"]["win_rate_1"] < 1
    assert (again, same["figures"]) == (0, report["figures"])
    flags += ("--judge-dir", str(tmp_path / "empty"), "--judge.attempts", "1")
    status, _ = run(world, tmp_path / "gone", *flags)
    assert status == 2
    assert "rewardloop evaluate: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version", "1"], "1 is not"),
        (["--model", "policy", "--version", "9"], "9"),
        (["--directory", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--directory", "x", "--benchmark-margin", "0.1"], "benchmark_margin"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    world: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status, _ = run(world, tmp_path / "out", *flags)
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    said = capsys.readouterr().err
    assert "rewardloop evaluate: " in said
    assert "Traceback" not in said
