"""`rewardloop judge` against an endpoint with a known bias and a known error, through a real feedback service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.client_servers import Services, start, status
from support.judge_endpoint import JudgeEndpoint, biased, judge_endpoint
from support.processes import kill_group, start_group

from rewardloop.formats.text import turns
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.commands.judge.command import main
from rewardloop_trainer.data.preferences import from_event
from rewardloop_trainer.data.weights.source_weights import measure_sources

PAIRS = 300


def better(asked: str, a: str, b: str) -> bool:
    return "right" in a


def rows(path: Path, judged: int, others: int = 0) -> Path:
    """Pairs that two people judged alike, and pairs that nobody judged; the better response is the first in half."""
    made: list[dict[str, object]] = []
    for i in range(judged + others):
        texts = [f"right {i}", f"wrong, {i}"]
        said = [{"annotator": f"p{n}", "choice": i % 2} for n in range(2)]
        row = {"prompt": f"question {i}", "responses": texts[:: -1 if i % 2 else 1]}
        made.append({**row, "annotations": said} if i < judged else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def arguments(endpoint: JudgeEndpoint, tmp_path: Path, *more: str) -> list[str]:
    return [
        *("--endpoint", endpoint.url, "--model", "judge", "--once", "--work-dir", str(tmp_path / "work")),
        *("--metrics-port", "0", "--first-pause-s", "0.01", "--log-level", "warning", "--output", "json", *more),
    ]


def test_planted_bias_and_error_are_measured_and_the_weight_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint takes the first response in 0.3 of the pairs, and errs in 0.2 of the others."""
    data = rows(tmp_path / "pairs.jsonl", PAIRS)
    services = Services()
    server, address = start(services)
    try:
        with judge_endpoint(biased(better, first=0.3, error=0.2)) as endpoint:
            sent = ["--data", str(data), "--server", address, "--shared-share", "1"]
            assert main(arguments(endpoint, tmp_path, *sent, "--floor", "0.9")) == 0
    finally:
        server.stop(None)
    assert len(endpoint.asked) == 2 * PAIRS
    assert endpoint.most_in_flight <= 8
    events = list(services.seen.values())
    assert len(events) == PAIRS
    assert {event.source for event in events} == {feedback_pb2.SOURCE_LLM_JUDGE}
    assert {event.annotator_id for event in events} == {"judge/helpful@1/1x0"}
    assert {event.tags["judge_model"] for event in events} == {"judge-2026-11"}
    ties = [event for event in events if event.WhichOneof("signal") == "tie"]
    assert abs(len(ties) / PAIRS - 0.3) < 0.08
    decided = [event for event in events if event.WhichOneof("signal") == "choice"]
    wrong = sum("right" not in event.responses[event.choice.chosen] for event in decided)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for figure, truth in (
        ("agreement", 0.8),
        ("consistency", 0.7),
        ("first_shown", 0.65),
        ("longer", wrong / len(decided)),
        ("weight", 0.6),
    ):
        assert found[figure]["lower"] <= truth <= found[figure]["upper"], (figure, found[figure])
    # Two people agree in all pairs, and 50 more are assumed at 0.75; so the weight is about (2 * 0.8 - 1) / 0.93.
    assert abs(found["weight"]["weight"] - 0.6 / 0.93) < 0.15
    assert (found["floor"], found["is_muted"]) == (0.9, True)


def test_a_trainer_measures_the_same_weight_from_the_signals(tmp_path: Path) -> None:
    data, out = rows(tmp_path / "pairs.jsonl", 120), tmp_path / "labels.jsonl"
    with judge_endpoint(biased(better, first=0.0, error=0.5)) as endpoint:
        assert main(arguments(endpoint, tmp_path, "--data", str(data), "--out", str(out), "--shared-share", "1")) == 0
    from rewardloop_data.judgements import Labels
    from rewardloop_data.recognise import events_of

    people = [e for line in data.read_text().splitlines() for e in events_of(json.loads(line), Labels())]
    judge = [e for line in out.read_text().splitlines() for e in events_of(json.loads(line), Labels("llm_judge"))]
    assert len(judge) == 120
    measured = measure_sources(record for event in (*people, *judge) for record in from_event(event))
    assert measured["llm_judge/judge/helpful@1/1x0"].weight < 0.5
    assert measured["llm_judge/judge/helpful@1/1x0"].is_muted(0.4)


def test_a_muted_judge_labels_shared_pairs_alone_and_a_heard_one_the_others_too(tmp_path: Path) -> None:
    data = rows(tmp_path / "pairs.jsonl", 400, 400)

    def judged(name: str, error: float) -> list[dict[str, object]]:
        (tmp_path / name).mkdir()
        out = tmp_path / name / "labels.jsonl"
        more = ["--data", str(data), "--out", str(out), "--least-shared", "150", "--batch", "150"]
        with judge_endpoint(biased(better, first=0.0, error=error)) as endpoint:
            assert main(arguments(endpoint, tmp_path / name, *more)) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    bad, good = judged("bad", 0.9), judged("good", 0.1)
    assert {row["picked"] for row in bad} == {"shared"}
    assert len(bad) == 150
    assert sum(row["picked"] == "unasked" for row in good) == 400


def test_kill_in_the_middle_judges_no_pair_twice_and_loses_none(tmp_path: Path) -> None:
    data = rows(tmp_path / "pairs.jsonl", 100, 100)
    services = Services()
    server, address = start(services)
    log = tmp_path / "log"
    try:
        with judge_endpoint(biased(better, first=0.2, error=0.2), delay_s=0.05) as endpoint:
            argv = [sys.executable, "-m", "rewardloop_trainer.commands.judge.command"]
            argv += arguments(endpoint, tmp_path, "--data", str(data), "--server", address, "--batch", "20")
            argv += ["--concurrency", "4", "--shared-share", "1"]
            for calls in (60, 160, 260):
                process = start_group(argv, log)
                wait_for(endpoint, calls, process)
                kill_group(process)
            assert 0 < len(services.seen) < 200
            process = start_group(argv, log)
            assert process.wait(240) == 0, log.read_text()
    finally:
        server.stop(None)
    assert len(services.seen) == 200
    assert len({turns(event.prompt) for event in services.seen.values()}) == 200
    # Only calls that were in flight at a kill are made again: 4 at each of 3 kills.
    assert 400 <= len(endpoint.asked) <= 400 + 3 * 4


def wait_for(endpoint: JudgeEndpoint, calls: int, process: object) -> None:
    end = time.monotonic() + 240
    while len(endpoint.asked) < calls and time.monotonic() < end:
        time.sleep(0.02)
    assert len(endpoint.asked) >= calls


def test_budget_ends_a_run_in_the_middle_and_the_next_day_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = rows(tmp_path / "pairs.jsonl", 30), tmp_path / "labels.jsonl"
    more = ["--data", str(data), "--out", str(out), "--shared-share", "1", "--calls-a-day", "35"]
    with judge_endpoint(biased(better, first=0.0, error=0.0)) as endpoint:
        assert main(arguments(endpoint, tmp_path, *more)) == 3
        assert len(endpoint.asked) == 35
        assert main(arguments(endpoint, tmp_path, *more)) == 3  # the budget outlives the process
        assert len(endpoint.asked) == 35
        before = len(out.read_text().splitlines())
        assert 13 <= before <= 17
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + 86_400)
        assert main(arguments(endpoint, tmp_path, *more)) == 0
    assert len(endpoint.asked) == 60
    assert len(out.read_text().splitlines()) == 30


def test_votes_are_counted_and_a_service_that_is_full_gets_the_signals_later(tmp_path: Path) -> None:
    data = rows(tmp_path / "pairs.jsonl", 4)
    services = Services()
    server, address = start(services)
    services.failures = [status("QUEUE_FULL")] * 20
    more = ["--data", str(data), "--server", address, "--shared-share", "1", "--votes", "3", "--temperature", "0.5"]
    try:
        with judge_endpoint(biased(better, first=0.0, error=0.0)) as endpoint:
            assert main(arguments(endpoint, tmp_path, *more)) == 1
            assert services.seen == {}
            services.failures = []
            assert main(arguments(endpoint, tmp_path, *more)) == 0
    finally:
        server.stop(None)
    assert len(endpoint.asked) == 2 * 3 * 4
    assert {body["seed"] for body in endpoint.asked} == {0, 1, 2}
    assert len(services.seen) == 4


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "name one judge"),
        (["--endpoint", "http://x/v1", "--model", "m"], "name pairs"),
        (["--endpoint", "http://x/v1"], "endpoint and model go together"),
        (["--base", "x", "--data", "d.jsonl"], "name where labels go"),
        (["--base", "x", "--data", "none.jsonl", "--out", "o"], "none.jsonl"),
        (["--endpoint", "http://x/v1", "--model", "m", "--data", "d", "--out", "o", "--votes", "3"], "temperature"),
        (["--endpoint", "x", "--model", "m", "--data", "d", "--out", "o"], "no URL"),
    ],
)
def test_wrong_flags_end_with_status_2_and_one_line(
    flags: Sequence[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--work-dir", str(tmp_path / "w"), "--metrics-port", "0"]
    try:
        found = main([*flags, *work])
    except SystemExit as error:
        found = int(error.code or 0)
    said = capsys.readouterr().err
    assert found == 2
    assert problem in said
    assert len(said.strip().splitlines()) == 1


def test_a_rubric_of_the_same_version_keeps_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, rubric = rows(tmp_path / "pairs.jsonl", 2), tmp_path / "r.toml"
    more = ["--data", str(data), "--out", str(tmp_path / "o"), "--rubric", str(rubric)]
    with judge_endpoint(biased(better, first=0.0, error=0.0)) as endpoint:
        rubric.write_text('name = "r"\nversion = "1"\ncriteria = "Be right."\n')
        assert main(arguments(endpoint, tmp_path, *more)) == 0
        rubric.write_text('name = "r"\nversion = "1"\ncriteria = "Be short."\n')
        assert main(arguments(endpoint, tmp_path, *more)) == 2
    assert "give it another version" in capsys.readouterr().err


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path) -> None:
    data = rows(tmp_path / "pairs.jsonl", 20)
    faults = [lambda handler: handler.answer(401, {"error": {"message": "no"}})] * 100
    with judge_endpoint(biased(better, first=0.0, error=0.0), faults=faults) as endpoint:
        assert main(arguments(endpoint, tmp_path, "--data", str(data), "--out", str(tmp_path / "o"))) == 1
    assert len(endpoint.asked) <= 8


def test_an_endpoint_without_its_package_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(tmp_path / "pairs.jsonl", 2)
    monkeypatch.setattr("rewardloop_trainer.judging.open_model.find_spec", lambda name: None)
    with judge_endpoint(biased(better, first=0.0, error=0.0)) as endpoint:
        assert main(arguments(endpoint, tmp_path, "--data", str(data), "--out", str(tmp_path / "o"))) == 1
    assert "rewardloop judge: --endpoint needs the package openai: pip install" in capsys.readouterr().err
    assert endpoint.asked == []
