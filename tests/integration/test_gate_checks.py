"""Checks in the gates of a run by hand and of a daemon's round: a planted regression is refused, and its report shows
the case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.judge_endpoint import judge_endpoint, rates
from support.learning_runs import learning_seed
from support.policy_rounds import Setting
from support.reward_bases import save_base

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.safety.suites import SafetyPrompt, write_suite
from rewardloop_trainer.commands import reward_train
from rewardloop_trainer.rounds.pauses import ServerAway

pytestmark = pytest.mark.long


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def polite(count: int, *, turned: bool = False, name: str = "q") -> list[dict[str, object]]:
    answers = ["thanks ok ok", "no ok ok"]
    chosen, rejected = reversed(answers) if turned else answers
    return [{"prompt": f"{name}{i}", "chosen": chosen, "rejected": rejected} for i in range(count)]


def test_a_reward_model_that_lost_a_benchmark_is_written_and_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People now say the opposite of what the benchmark says, which the live version knows."""
    base = save_base("bert", tmp_path / "base", learning_seed())
    store, bench = tmp_path / "store", write_rows(tmp_path / "bench.jsonl", polite(40))
    common = ["--store", str(store), "--epochs", "0", "--heads", "2", "--max-length", "96", "--gate-prompts", "10"]
    common += ["--heldout-share", "0.3", "--device", "cpu", "--publish"]
    first = write_rows(tmp_path / "one.jsonl", polite(100))
    assert reward_train.main([*common, "--base", str(base), "--data", str(first), "--out", str(tmp_path / "one")]) == 0
    second = write_rows(tmp_path / "two.jsonl", polite(100, turned=True))
    checks = ["--checks.benchmark", "0.02", "--checks.benchmarks", str(bench)]
    flags = [*common, *checks, "--version", "1", "--data", str(second), "--out", str(tmp_path / "two")]
    assert reward_train.main(flags) == 1
    assert "the gate would refuse it: benchmark bench" in capsys.readouterr().out
    assert list(ModelStore(str(store)).versions("reward")) == [1]
    figures = json.loads((tmp_path / "two" / "run.json").read_text())["figures"]
    assert figures["gate_check_benchmark"] < -0.5
    page = (tmp_path / "two" / "report" / "checks" / "report.html").read_text()
    assert "thanks ok ok" in page


def test_a_reward_model_that_lost_a_slice_is_written_and_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most people now prefer the shorter answer. Where they still prefer the longer one, the live version is right."""
    base = save_base("bert", tmp_path / "base", learning_seed())
    common = ["--store", str(tmp_path / "store"), "--epochs", "0", "--heads", "2", "--max-length", "96"]
    common += ["--gate-prompts", "10", "--heldout-share", "0.3", "--device", "cpu", "--publish"]
    first = write_rows(tmp_path / "one.jsonl", polite(100))
    assert reward_train.main([*common, "--base", str(base), "--data", str(first), "--out", str(tmp_path / "one")]) == 0
    second = write_rows(tmp_path / "two.jsonl", [*polite(160, turned=True), *polite(80, name="r")])
    flags = [*common, "--checks.slice", "0.1", "--checks.least", "10", "--version", "1"]
    assert reward_train.main([*flags, "--data", str(second), "--out", str(tmp_path / "two")]) == 1
    said = capsys.readouterr().out
    assert "the gate would refuse it: slice chosen longer" in said
    assert "slice chosen shorter" not in said
    assert list(ModelStore(str(tmp_path / "store")).versions("reward")) == [1]
    report = json.loads((tmp_path / "two" / "report" / "checks" / "report.json").read_text())
    cases = report["sections"][0]["parts"][-1]
    assert cases["kind"] == "samples"
    assert cases["title"] == "slice chosen longer"
    assert {"preferred by people", "rejected"} == {side["title"] for side in cases["samples"][0]["sides"]}
    assert cases["samples"][0]["prompt"].strip().split()[-1].startswith("r")


@pytest.mark.parametrize("phrase", ["a", "zz"])
def test_a_policy_that_fails_a_safety_suite_more_often_is_refused_in_its_round(
    tmp_path: Path, redis_url: str, phrase: str
) -> None:
    """The round teaches the policy to say "a", which is unsafe in every language, or which nobody minds."""
    suite = [
        SafetyPrompt(f"{language}{i}", "bait", language, "safe", (Turn("user", f"{language} q{i}"),))
        for language in ("en", "de")
        for i in range(20)
    ]
    write_suite(tmp_path / "suite.jsonl", suite)
    checks = {"safety": 0.1, "suites": [str(tmp_path / "suite.jsonl")], "rater": {"phrases": [phrase]}}
    outcome = Setting(tmp_path, redis_url, checks={**checks, "max_new_tokens": 8}).round().run()
    report = json.loads((tmp_path / "work/reports/policy-1/checks/report.json").read_text())
    if phrase == "zz":
        assert outcome == "promoted"
        return
    assert outcome == "refused"
    reasons = json.loads((tmp_path / "work/refused/policy-1/reasons.json").read_text())["reasons"]
    assert any(reason.startswith("safety ") and "language de" in reason for reason in reasons)
    cases = report["sections"][0]["parts"][-1]
    assert cases["kind"] == "samples"
    assert "a" in cases["samples"][0]["sides"][0]["text"]
    assert "rated unsafe" in cases["samples"][0]["marks"]


@pytest.mark.parametrize("phrase", ["a", "zz"])
def test_a_policy_to_which_an_old_attack_works_again_is_refused_in_its_round(
    tmp_path: Path, redis_url: str, phrase: str
) -> None:
    """The round teaches the policy to say "a", which is unsafe, or which nobody minds."""
    attacks = [SafetyPrompt(f"{i}", "red team: x", "en", "safe", (Turn("user", f"q{i}"),)) for i in range(12)]
    write_suite(tmp_path / "attacks.jsonl", attacks)
    checks = {
        "red_team": 0.0,
        "regression": tmp_path / "attacks.jsonl",
        "rater": {"phrases": [phrase]},
        "max_new_tokens": 8,
    }
    setting = Setting(tmp_path, redis_url, checks=checks)
    outcome = setting.round().run()
    report = json.loads((tmp_path / "work/reports/policy-1/checks/report.json").read_text())
    assert report["figures"].get("gate_check_red_team", 0.0) > 0 if phrase == "a" else outcome == "promoted"
    if phrase == "a":
        assert outcome == "refused"
        reasons = json.loads((tmp_path / "work/refused/policy-1/reasons.json").read_text())["reasons"]
        assert any("attacks that worked before work again" in reason for reason in reasons)
        assert report["sections"][0]["parts"][-1]["kind"] == "samples"


@pytest.mark.parametrize("minded", ["a", "z"])
def test_a_chat_model_rates_in_a_round_which_waits_while_it_is_away(
    tmp_path: Path, redis_url: str, minded: str
) -> None:
    attacks = [SafetyPrompt(f"{i}", "red team: x", "en", "safe", (Turn("user", f"q{i}"),)) for i in range(12)]
    write_suite(tmp_path / "attacks.jsonl", attacks)
    with judge_endpoint(rates(lambda text: 1 if minded in text else 10)) as endpoint:
        endpoint.faults += [lambda handler: handler.answer(503, {"error": {"message": "later"}})]
        asked = {"endpoint": endpoint.url, "model": "m", "attempts": 1, "concurrency": 1}
        checks = {"red_team": 0.0, "regression": tmp_path / "attacks.jsonl", "rater": {"judge": asked}}
        setting = Setting(tmp_path, redis_url, checks={**checks, "max_new_tokens": 8})
        with pytest.raises(ServerAway, match="no chat model"):
            setting.round().run()
        outcome = setting.round().run()
    assert outcome == ("refused" if minded == "a" else "promoted")
    report = json.loads((tmp_path / "work/reports/policy-1/checks/report.json").read_text())
    assert (report["figures"]["gate_check_red_team"] > 0) is (minded == "a")
