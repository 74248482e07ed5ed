"""``rewardloop evaluate``: reports of tiny reward models and policies, from directories, files and a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.judge_endpoint import biased, judge_endpoint, rates
from support.policy_versions import FEW_CHARACTERS, publish_policy, quick_policy
from support.tiny_encoder import save_tiny_encoder

from rewardloop.formats.store import ModelStore
from rewardloop_data.questions import question_of
from rewardloop_data.shapes.shape import Choices
from rewardloop_trainer.commands.evaluate.command import main
from rewardloop_trainer.commands.export import main as export


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
    store = ModelStore(world / "models")
    kept = store.evaluated.read("policy", "2", store.manifest("policy", 2).digest)
    assert kept is not None
    assert (kept.figures, kept.against) == (figures, "policy 1")
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


def answer(task: Any, chosen: int, *, who: str = "anna", **more: object) -> dict[str, object]:
    """A row as `label export --format answers` writes it, of somebody who saw the second response first."""
    verdict = (
        {"tie": {"first": 0, "second": 1}} if chosen < 0 else {"choice": {"chosen": chosen, "rejected": 1 - chosen}}
    )
    texts = [{"text": text, "version": ""} for text in task["responses"]]
    row = {"prompt": task["prompt"], "candidates": texts, "display_order": [1, 0], "verdict": verdict}
    return {**row, "annotator": who, "is_repeat": False, **more}


def test_people_judge_the_pairs_that_they_are_asked(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": f"q{i}", "responses": ["abab0", "bab"]} for i in range(6)])
    flags = ("--model", "policy", "--directory", str(world / "answers.jsonl"), "--against", str(other))
    pairs, answers = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    status, _ = run(world, tmp_path / "one", *flags, "--ask", str(pairs))
    assert status == 0
    tasks = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(tasks) == 6
    questions = [question_of(task, Choices()) for task in tasks]  # as `label import` reads them
    assert {question.responses for question in questions} == {("a", "abab0")}
    rows = [answer(task, 0) for task in tasks[:3]]
    rows += [
        answer(tasks[3], 1),
        answer(tasks[3], 1, who="bert"),
        answer(tasks[3], 0, who="cleo"),
        answer(tasks[4], -1),
    ]
    rows += [answer(tasks[5], 0, is_repeat=True), {**answer(tasks[5], 0), "verdict": {"skip": {"reason": "both"}}}]
    write_rows(answers, rows)
    status, report = run(world, tmp_path / "two", *flags, "--people", str(answers))
    assert status == 0
    assert report["facts"]["judges"] == "3 people"
    assert report["figures"]["win_rate"] == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)
    row = next(s for s in report["sections"] if s["name"] == "head-to-head")["parts"][1]["rows"][0]
    assert row[4] == pytest.approx((0 + 0 + 0 + 2 / 3 + 0.5) / 5)  # how often the answer shown first won
    write_rows(answers, [answer({**tasks[0], "responses": ["x", "y"]}, 0)])
    assert run(world, tmp_path / "three", *flags, "--people", str(answers))[0] == 2
    assert "nobody judged two of these answers" in capsys.readouterr().err
    write_rows(answers, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert run(world, tmp_path / "four", *flags, "--people", str(answers))[0] == 2
    assert "answers.jsonl:1: is no row of `label export" in capsys.readouterr().err


SMALL = ("--prompts", "6", "--responses", "2", "--max-new-tokens", "8")


def test_models_rate_how_safe_answers_are(world: Path, tmp_path: Path) -> None:
    """A chat model that minds an "a" finds what the phrase finds; a reward model's least score decides."""
    suite = [
        {"id": f"{i}", "category": "bait", "language": "en", "expect": "safe", "prompt": f"say {i}"} for i in range(6)
    ]
    flags = ("--model", "policy", "--version", "1", "--suites", str(write_rows(tmp_path / "safe.jsonl", suite)), *SMALL)
    _, by_phrase = run(world, tmp_path / "phrase", *flags, "--rater.phrases", "a")
    with judge_endpoint(rates(lambda text: 1 if "a" in text else 10)) as endpoint:
        chat = ("--rater.judge.endpoint", endpoint.url, "--rater.judge.model", "m")
        chat += ("--judge-dir", str(tmp_path / "kept"))
        status, by_chat = run(world, tmp_path / "chat", *flags, *chat)
        paid = len(endpoint.asked)
        run(world, tmp_path / "again", *flags, *chat)
        assert len(endpoint.asked) == paid  # every reply was kept
        assert "how safe" in endpoint.asked[0]["messages"][0]["content"]
    assert status == 0
    assert 0 < by_phrase["figures"]["safety_failures"] < 1
    assert by_chat["figures"]["safety_failures"] == by_phrase["figures"]["safety_failures"]
    assert "safe@1" in json.dumps(by_chat["sections"])
    failures = []
    for least in ("-1000", "1000"):
        model = ("--rater.reward", str(world / "one"), "--rater.least-score", least)
        _, report = run(world, tmp_path / least, *flags, *model)
        failures.append(report["figures"]["safety_failures"])
    assert failures[0] == 0 < failures[1]


def test_a_chat_model_writes_attacks_in_other_words_within_its_budget(world: Path, tmp_path: Path) -> None:
    regression = tmp_path / "attacks.jsonl"
    flags = ("--model", "policy", "--version", "1", "--suites", str(world / "suite.jsonl"), *SMALL)
    flags += ("--rater.phrases", "a", "--red-team", "160", "--regression", str(regression))
    said = iter(range(1000))
    with judge_endpoint(lambda messages: f"b{next(said)}") as endpoint:
        flags += ("--paraphrase.endpoint", endpoint.url, "--paraphrase.model", "m", "--paraphrase.calls-a-day", "4")
        status, report = run(world, tmp_path / "out", *flags)
        assert len(endpoint.asked) == 4
        assert "Say this in other words" in endpoint.asked[0]["messages"][0]["content"]
    assert status == 0
    assert report["figures"]["red_team_paraphrases"] == 4
    assert "until its budget of the day was spent" in json.dumps(report["sections"])
    rows = next(s for s in report["sections"] if s["name"] == "red-team")["parts"][1]["rows"]
    assert next(row for row in rows if row[0] == "paraphrase")[1] == 4


def test_a_named_reward_model_is_evaluated_on_its_aspect(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "models"
    for name in ("one", "two"):
        common = ["--base", str(world / name), "--store", str(store), "--model", "helpful", "--max-length", "64"]
        assert export(common) == 0
    capsys.readouterr()
    aspects = ("helpful", "harmless", "")
    rows = [
        {"prompt": f"q{i}", "chosen": "ab" * (i % 4 + 1), "rejected": "qq", "aspect": aspects[i % 3]} for i in range(30)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--store", str(store), "--model", "helpful", "--version", "2", "--versions", "all", "--data", str(data)]
    judged = ["--judges", "helpful@1", "--answers", str(world / "answers.jsonl")]
    assert main([*flags, *judged, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["title"] == "helpful: helpful 2"
    assert report["facts"]["held-out choices"] == 20
    assert report["facts"]["compared with"] == "helpful 1"
    assert "over-optimisation" in [section["name"] for section in report["sections"]]
    assert 'model="helpful"' in (tmp_path / "metrics.prom").read_text()
    version = ModelStore(store).manifest("helpful", 2)
    kept = ModelStore(store).evaluated.read("helpful", "2", version.digest)
    assert kept is not None
    assert kept.figures["accuracy"] == report["figures"]["accuracy"]
    assert not any(name.startswith("accuracy_in_") for name in kept.figures)
    judged[1] = "reward@1"
    assert main([*flags, *judged, "--out", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        main([*flags, "--model", "No Name", "--out", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version", "1"], "1 is not"),
        (["--model", "policy", "--version", "9"], "9"),
        (["--directory", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--directory", "x", "--benchmark-margin", "0.1"], "benchmark_margin"),
        (
            ["--model", "policy", "--version", "9", "--rater.phrases", "a", "--regression", "none.jsonl"],
            "none.jsonl: there is no such suite",  # said before anything is loaded or asked
        ),
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
