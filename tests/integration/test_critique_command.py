"""`rewardloop critique` with a scripted endpoint and with a real model: edits, principles' counts, and less harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.client_servers import Services, start
from support.judge_endpoint import JudgeEndpoint, Message, compared, judge_endpoint

from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.commands.critique.command import main

# What the independent rater below counts, and nothing that the endpoint or a principle names.
HARM = ("poison", "stab", "burn")
CONSTITUTION = """
name = "test"
version = "4"
[[principles]]
id = "no-harm"
critique = "The answer helps nobody to harm people. Name every sentence that would."
revision = "Write it without what helps to harm people."
preference = "Which response helps less to harm people?"
[[principles]]
id = "polite"
critique = "The answer is polite. Say where it is not."
revision = "Write it politely."
"""


def harmless(text: str) -> str:
    return (
        ". ".join(each for each in text.split(". ") if not any(word in each for word in HARM))
        or "I cannot help with it."
    )


def writes(messages: list[Message]) -> str:
    """A model that removes harmful sentences, finds nothing impolite, and prefers less harm."""
    system, user = messages[0]["content"], messages[1]["content"]
    if system.startswith("You compare"):
        _, a, b = compared(messages)
        return f"VERDICT: {'A' if sum(w in a for w in HARM) < sum(w in b for w in HARM) else 'B'}"
    text = user.partition("<answer>\n")[2].partition("\n</answer>")[0]
    if system.startswith("You criticise"):
        is_at_fault = "harm people" in system and harmless(text) != text
        return "It names how to harm people." if is_at_fault else "NO CHANGE"
    return harmless(text) if system.startswith("You write") else "Take care. You could burn it."


def rater(text: str) -> int:
    """An independent rater: the harmful words in a text."""
    return sum(text.count(word) for word in HARM)


def prompts(path: Path, count: int) -> Path:
    answers = ("Be calm. You could poison him.", "Count to ten. Then stab it. Be well.", "Drink tea.")
    rows = [{"prompt": f"How do I get rid of {i}?", "completion": answers[i % 3]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(tmp_path: Path, *more: str) -> list[str]:
    constitution = tmp_path / "constitution.toml"
    constitution.write_text(CONSTITUTION)
    return [
        *("--constitution", str(constitution), "--work-dir", str(tmp_path / "work"), "--out", str(tmp_path / "out")),
        *("--metrics-port", "0", "--first-pause-s", "0.01", "--log-level", "warning", *more),
    ]


def at(endpoint: JudgeEndpoint) -> list[str]:
    return ["--endpoint", endpoint.url, "--model", "writer"]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_harmful_set_of_answers_is_less_harmful_and_principles_are_counted(tmp_path: Path) -> None:
    data = prompts(tmp_path / "prompts.jsonl", 30)
    services = Services()
    server, address = start(services)
    try:
        with judge_endpoint(writes) as endpoint:
            flags = arguments(tmp_path, *at(endpoint), "--prompts", str(data), "--server", address)
            assert main(flags) == 0
            asked = len(endpoint.asked)
            assert main(flags) == 0
            assert len(endpoint.asked) == asked  # all is kept
    finally:
        server.stop(None)
    before = [json.loads(line)["completion"] for line in data.read_text().splitlines()]
    after = [str(row["completion"]) for row in lines(tmp_path / "out/sft.jsonl")]
    assert sum(map(rater, before)) == 20
    assert sum(map(rater, after)) == 0
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert (counts["answers"], counts["changed"], counts["constitution"]) == (30, 20, "test@4")
    by_id = {each["id"]: each for each in counts["principles"]}
    assert (by_id["no-harm"]["drawn"], by_id["no-harm"]["changed"], by_id["no-harm"]["unchanged"]) == (30, 20, 10)
    assert (by_id["polite"]["drawn"], by_id["polite"]["changed"], by_id["polite"]["unchanged"]) == (30, 0, 30)
    assert by_id["no-harm"]["preferred"] == 1.0
    events = list(services.seen.values())
    assert len(events) == 40  # an edit and a preference for each change, recorded once by two runs
    edits = [event for event in events if event.WhichOneof("signal") == "edit"]
    assert len(edits) == 20
    assert all(event.source == feedback_pb2.SOURCE_LLM_JUDGE for event in events)
    assert {event.tags["principle"] for event in events} == {"no-harm"}
    assert all(rater(event.edit.edited_text) == 0 for event in edits)


def test_files_are_read_by_the_commands_that_learn_from_them(tmp_path: Path) -> None:
    from rewardloop_data.judgements import Labels
    from rewardloop_data.recognise import events_of

    with judge_endpoint(writes) as endpoint:
        data = prompts(tmp_path / "prompts.jsonl", 6)
        assert main(arguments(tmp_path, *at(endpoint), "--prompts", str(data))) == 0
    labels = Labels("llm_judge")
    edits = [event for row in lines(tmp_path / "out/edits.jsonl") for event in events_of(row, labels)]
    preferences = [event for row in lines(tmp_path / "out/preferences.jsonl") for event in events_of(row, labels)]
    assert len(edits) == len(preferences) == 4
    assert {event.annotator_id for event in (*edits, *preferences)} == {"writer/test@4"}
    assert {row["principle"] for row in lines(tmp_path / "out/steps.jsonl")} == {"no-harm", "polite"}


def test_model_or_policy_answers_what_has_no_answer(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "How?"}\n{"messages": [{"role": "user", "content": "What?"}]}\n')
    services = Services()
    server, address = start(services)
    try:
        with judge_endpoint(writes) as endpoint:
            assert main(arguments(tmp_path, *at(endpoint), "--prompts", str(data))) == 0
            assert {row["before"] for row in lines(tmp_path / "out/steps.jsonl")} >= {"Take care. You could burn it."}
            of_policy = ["--server", address, "--answers", "policy"]
            assert main(arguments(tmp_path, *at(endpoint), "--prompts", str(data), *of_policy)) == 0
            assert {row["before"] for row in lines(tmp_path / "out/steps.jsonl")} == {"hello"}
    finally:
        server.stop(None)


def test_budget_ends_a_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    data = prompts(tmp_path / "prompts.jsonl", 9)
    with judge_endpoint(writes) as endpoint:
        flags = arguments(tmp_path, *at(endpoint), "--prompts", str(data), "--concurrency", "1")
        assert main([*flags, "--calls-a-day", "10"]) == 3
        assert len(endpoint.asked) == 10
        first = json.loads((tmp_path / "out/counts.json").read_text())["answers"]
        assert 0 < first < 9
        assert main(flags) == 0
        whole = len(endpoint.asked)
    assert len(lines(tmp_path / "out/sft.jsonl")) == 9
    # Each answer: a critique by both principles; each of the 6 changes: a revision and a choice in both orders.
    assert whole == 9 * 2 + 6 * 3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "name one model"),
        (["--base", "x"], "name the file of prompts"),
        (["--base", "x", "--prompts", "none.jsonl"], "none.jsonl"),
        (["--base", "x", "--prompts", "p", "--answers", "policy"], "not named"),
    ],
)
def test_wrong_flags_end_with_status_2_and_one_line(
    flags: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main([*flags, "--metrics-port", "0", "--work-dir", str(tmp_path)])
    except SystemExit as error:
        found = int(error.code or 0)
    said = capsys.readouterr().err
    assert (found, len(said.strip().splitlines())) == (2, 1)
    assert problem in said


def test_a_wrong_constitution_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prompts(tmp_path / "prompts.jsonl", 3)
    flags = arguments(tmp_path, "--base", "x", "--prompts", str(data))
    (tmp_path / "constitution.toml").write_text(CONSTITUTION + "strength = 3\n")
    assert main(flags) == 2
    assert "principles.1.strength: unknown key" in capsys.readouterr().err
