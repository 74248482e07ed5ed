"""`rewardloop label`: every shape becomes tasks, answers become rows of other tools, and refusals have reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rewardloop_cli.label import exports, guidelines, imports, retract, status
from rewardloop_cli.main import app
from rewardloop_client import NewTask, Offer, Verdict
from rewardloop_client.fake import FakeRewardloop
from rewardloop_data.questions import question_of
from rewardloop_data.recognise import recognise
from rewardloop_data.rows import RowError
from rewardloop_data.shapes.shape import Choices
from rewardloop_data.source_file import SourceFile


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRewardloop:
    made = FakeRewardloop()
    for module in (exports, guidelines, imports, retract, status):
        monkeypatch.setattr(module, "open_client", lambda *_, **__: made)
    return made


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_file(*rows: Any, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["label", *args])


def offers(fake: FakeRewardloop, who: str = "anna") -> list[Offer]:
    """Every task of the project, skipped one after the other."""
    found = []
    while (offer := fake.labelling.next_task("shop", labeller=who)).task is not None:
        found.append(offer)
        fake.labelling.answer("shop", offer.task.lease_id, Verdict.skip("seen"), labeller=who)
    return found


def label(fake: FakeRewardloop, *tasks: NewTask, say: Any) -> None:
    fake.labelling.add_tasks("shop", tasks, import_id="i1")
    while (task := fake.labelling.next_task("shop", labeller="anna").task) is not None:
        verdict = say([task.candidates.index(text) for text in ("a", "b", "c")[: len(task.candidates)]])
        fake.labelling.answer("shop", task.lease_id, verdict, labeller="anna", seconds=2.0)


def test_every_shape_of_a_question_becomes_a_task(fake: FakeRewardloop) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file = rows_file(
        {"prompt": "p1", "responses": ["x", "y"]},
        {"prompt": "p2", "response_1": "x", "response_2": "y", "response_10": "z"},
        {"prompt": "p3", "completion": "x"},
        {"messages": chat},
        {"id": "r1", "fields": {"prompt": "p5", "response_1": "x", "response_2": "y"}, "responses": {"q": []}},
        {"data": {"prompt": "p6", "answer1": "x", "answer2": "y"}, "annotations": []},
    )
    result = run("import", file, "--project", "shop")
    assert result.exit_code == 0, result.output
    tasks = [offer.task for offer in offers(fake) if offer.task]
    assert [task.kinds for task in tasks] == [
        *[("choice",), ("ranking",), ("rating",), ("rating",), ("choice",), ("choice",)]
    ]
    assert sorted(tasks[1].candidates) == ["x", "y", "z"]
    assert tasks[3].prompt.text == "hi"
    assert tasks[3].candidates == ("hello",)


def test_judged_rows_are_asked_without_what_they_say_and_once(fake: FakeRewardloop) -> None:
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    file = rows_file(pair, {**pair, "annotator": "x"}, {**pair, "prompt": "q"})
    result = run("import", file, "--project", "shop", "--json")
    assert json.loads(result.stdout) | {"file": "", "import_id": ""} == {
        "file": "",
        "project": "shop",
        "import_id": "",
        "rows": 3,
        "tasks": 2,
        "duplicates": 1,
        "rejected": 0,
    }
    assert [sorted(offer.task.candidates) for offer in offers(fake) if offer.task] == [["bad", "good"]] * 2


def test_prompts_alone_are_answered_by_the_policy(fake: FakeRewardloop) -> None:
    file = rows_file({"prompt": "one"}, {"prompt": "two"})
    assert run("import", file, "--project", "shop", "--candidates", "3").exit_code == 0
    tasks = [offer.task for offer in offers(fake) if offer.task]
    assert [len(task.candidates) for task in tasks] == [3, 3]
    assert tasks[0].prompt.text == "one" or tasks[0].prompt.conversation.messages[0].content == "one"
    assert len(fake.generations) == 2


def test_dry_run_shows_examples_and_sends_nothing(fake: FakeRewardloop) -> None:
    file = rows_file(*({"prompt": f"p{i}", "responses": ["x", "y"]} for i in range(5)), {"prompt": 3})
    result = run("import", file, "--project", "shop", "--dry-run")
    assert result.exit_code == 1
    assert "6 rows, questions: 5 with 2 responses" in result.stdout
    assert "1 row holds no question, such as line 6: prompt: is a number, not text" in result.stdout
    assert result.stdout.count("  example ") == 3
    assert fake.attempts == []


def test_rows_that_ask_nothing_are_kept_aside_with_their_reasons(fake: FakeRewardloop) -> None:
    file = rows_file(
        {"prompt": "p", "responses": ["x", "y"]},
        {"prompt": "p", "responses": ["x", "x"]},
        {"prompt": "p", "responses": ["x", "y"], "persona": "a pirate"},
        {"text": "p"},
        {"prompt": "p", "responses": [str(i) for i in range(9)]},
    )
    result = run("import", file, "--project", "shop")
    assert result.exit_code == 1
    rejected = [json.loads(line) for line in Path("rows.jsonl.rejected.jsonl").read_text().splitlines()]
    reasons = [each["reason"] for each in rejected]
    assert [each["line"] for each in rejected] == [2, 3, 4, 5]
    assert "the same" in reasons[0]
    assert "--ignore persona" in reasons[1]
    assert "holds no question" in reasons[2]
    assert "at most 8" in reasons[3]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--kind", "thumb"], "--kind thumb: is not one of"),
        (["--shared-share", "0.5"], "--shared-share and --shared-overlap go together"),
        (["--scale", "5..1"], "--scale 5..1: its minimum is not below its maximum"),
    ],
)
def test_flags_that_mean_nothing_are_refused(fake: FakeRewardloop, args: list[str], said: str) -> None:
    result = run("import", rows_file({"prompt": "p"}), "--project", "shop", *args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_import_is_taken_back_by_what_it_printed(fake: FakeRewardloop) -> None:
    result = run("import", rows_file({"prompt": "p", "responses": ["x", "y"]}), "--project", "shop")
    command = result.stdout.split("'")[1].split()
    assert command[:3] == ["rewardloop", "label", "retract"]
    gone = run(*command[2:], "--json")
    assert json.loads(gone.stdout) == {"import_id": command[-1], "tasks": 1, "answers": 0}
    assert offers(fake) == []


def test_preferences_are_rows_that_feedback_import_reads(fake: FakeRewardloop) -> None:
    label(
        fake,
        NewTask(kinds=["choice"], prompt="p", candidates=["a", "b"]),
        NewTask(kinds=["ranking"], prompt="p", candidates=["a", "b", "c"]),
        NewTask(kinds=["edit"], prompt=[{"role": "user", "content": "hi"}], candidates=["a"]),
        say=lambda at: (
            Verdict.edit("better") if len(at) == 1 else Verdict.choice(*at) if len(at) == 2 else Verdict.ranking(at)
        ),
    )
    assert run("export", "--project", "shop", "--out", "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["rejected"]) for row in rows[:4]] == [("a", "b"), ("a", "b"), ("a", "c"), ("b", "c")]
    assert rows[4]["prompt"] == [{"role": "user", "content": "hi"}]
    assert rows[4]["chosen"] == [{"role": "assistant", "content": "better"}]
    source = SourceFile.of(Path("out.jsonl"))
    reading = recognise("out.jsonl", source.lines(), Choices())
    judged = [reading.judgements(line.value())[0] for line in source.lines()]
    assert {each.annotator for each in judged} == {"anna"}
    assert len(judged) == 5


def test_labels_rankings_and_everything_are_written(fake: FakeRewardloop) -> None:
    task = NewTask(kinds=["rating"], prompt="p", candidates=["a", "b", "c"], versions=["7", "8", "9"])
    label(fake, task, say=lambda at: Verdict.ratings({at[0]: 5.0, at[1]: 3.0, at[2]: 1.0}))
    rows = {
        form: [json.loads(line) for line in run("export", "--project", "shop", "--format", form).stdout.splitlines()]
        for form in ("kto", "rankings", "answers")
    }
    assert sorted((row["completion"], row["label"]) for row in rows["kto"]) == [("a", True), ("c", False)]
    assert (rows["rankings"][0]["responses"], rows["rankings"][0]["order"]) == (["a", "b", "c"], [0, 1, 2])
    (answer,) = rows["answers"]
    assert [each["version"] for each in answer["candidates"]] == ["7", "8", "9"]
    assert {g["response"]: g["value"] for g in answer["verdict"]["ratings"]["ratings"]} == {0: 5.0, 1: 3.0, 2: 1.0}


def test_parquet_is_written_and_a_file_that_has_no_one_schema_is_refused(fake: FakeRewardloop) -> None:
    label(fake, NewTask(kinds=["choice"], prompt="p", candidates=["a", "b"]), say=lambda at: Verdict.choice(*at))
    assert run("export", "--project", "shop", "--out", "out.parquet").exit_code == 0
    again = run("export", "--project", "shop", "--out", "out.parquet")
    assert again.exit_code == 2
    assert "out.parquet: exists already" in again.stderr
    assert run("export", "--project", "shop", "--out", "out.parquet", "--replace").exit_code == 0
    (row,) = pq.read_table("out.parquet").to_pylist()
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("p", "a", "b")
    chat = [{"role": "user", "content": "hi"}]
    label(fake, NewTask(kinds=["choice"], prompt=chat, candidates=["a", "b"]), say=lambda at: Verdict.choice(*at))
    refused = run("export", "--project", "shop", "--out", "mixed.parquet")
    assert refused.exit_code == 2
    assert "no one Parquet schema" in refused.stderr
    assert not list(Path().glob("*mixed*"))


@pytest.mark.parametrize(
    ("form", "name", "ending"),
    [
        ("argilla", "x.jsonl", ".json"),
        ("label-studio", "x.JSONL", ".json"),
        ("argilla", "x.csv", ".json"),
        ("trl", "x.json", ".jsonl"),
        ("kto", "x.jsonl.gz", ".jsonl"),
    ],
)
def test_an_ending_that_says_another_format_is_refused(fake: FakeRewardloop, form: str, name: str, ending: str) -> None:
    label(fake, NewTask(kinds=["choice"], prompt="p", candidates=["a", "b"]), say=lambda at: Verdict.choice(*at))
    refused = run("export", "--project", "shop", "--format", form, "--out", name)
    assert refused.exit_code == 2
    assert f"name the file {ending}" in " ".join(refused.stderr.split())
    assert not list(Path().glob("x.*"))


def test_argilla_records_and_label_studio_tasks_come_back_as_feedback_and_as_tasks(fake: FakeRewardloop) -> None:
    task = NewTask(kinds=["choice"], prompt="p", candidates=["a", "b"], overlap=1)
    label(fake, task, say=lambda at: Verdict.choice(*at))
    for form in ("argilla", "label-studio"):
        assert run("export", "--project", "shop", "--format", form, "--out", f"{form}.json").exit_code == 0
    argilla = {
        "prompt": "fields.prompt",
        "response_a": "fields.response_1",
        "response_b": "fields.response_2",
        "winner": "responses.preference.*.value",
        "annotator": "responses.preference.*.user_id",
    }
    studio = {
        "prompt": "data.prompt",
        "response_a": "data.answer1",
        "response_b": "data.answer2",
        "winner": "annotations.*.result.0.value.selected",
        "annotator": "annotations.*.completed_by.email",
    }
    for name, columns in (("argilla.json", argilla), ("label-studio.json", studio)):
        source = SourceFile.of(Path(name))
        reading = recognise(name, source.lines(), Choices(columns=columns, ignored=frozenset({"*"})))
        (line,) = source.lines()
        (judged,) = reading.judgements(line.value())
        assert (judged.responses[judged.said.chosen], judged.prompt[0].content) == ("a", "p")  # type: ignore[union-attr]
        assert run("import", name, "--project", name.split(".")[0]).exit_code == 0
        offer = fake.labelling.next_task(name.split(".")[0], labeller="bert")
        assert offer.task is not None
        assert sorted(offer.task.candidates) == ["a", "b"]


def test_what_an_export_leaves_out_is_counted(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [NewTask(kinds=["choice"], prompt=str(i), candidates=["a", "b"]) for i in "12"],
                             import_id="i1")  # fmt: skip
    for verdict in (Verdict.tie(), Verdict.skip("unclear")):
        task = fake.labelling.next_task("shop", labeller="anna").task
        assert task is not None
        fake.labelling.answer("shop", task.lease_id, verdict, labeller="anna")
    said = json.loads(run("export", "--project", "shop", "--dry-run", "--json").stdout)
    assert (said["rows"], said["left_out"]) == (0, {"answers that trl has no row for": 1, "skips": 1})
    assert run("export", "--project", "shop", "--format", "xml").exit_code == 2


@pytest.mark.parametrize("bad", [{"prompt": "\ud800"}, {"chosen": "a\udfff"}])
def test_a_row_of_broken_unicode_is_rejected_and_the_others_are_tasks(
    fake: FakeRewardloop, bad: dict[str, str]
) -> None:
    row = {"prompt": "How?", "chosen": "a", "rejected": "b"}
    file = rows_file({**row, **bad}, row)
    assert "example 1 (choice)" in run("import", file, "--project", "shop", "--dry-run").stdout
    assert run("import", file, "--project", "shop").exit_code == 1
    assert "lone surrogate" in Path(f"{file}.rejected.jsonl").read_text()
    assert len(offers(fake)) == 1


def test_status_sends_nothing_of_a_labeller_to_the_terminal_but_text(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [NewTask(("choice",), "How?", ("a", "b"))], import_id="i1")
    who = "anna\x1b]0;owned\x07"
    task = fake.labelling.next_task("shop", labeller=who).task
    assert task is not None
    fake.labelling.answer("shop", task.lease_id, Verdict.skip("no\x1b[8mhidden"), labeller=who)
    shown = run("status").stdout
    assert "\x1b" not in shown
    assert r"no\x1b[8mhidden" in shown


def test_status_tells_each_project_as_text_and_as_json(fake: FakeRewardloop) -> None:
    assert "no project" in run("status").stdout
    label(fake, NewTask(kinds=["choice"], prompt="p", candidates=["a", "b"]), say=lambda at: Verdict.choice(*at))
    text = run("status").stdout
    assert "shop: 1 of 1 tasks done" in text
    assert "anna" in text
    (progress,) = json.loads(run("status", "--json").stdout)
    assert (progress["project"], progress["answers"], progress["labellers"][0]["labeller"]) == ("shop", 1, "anna")
    assert run("status", "--project", "none").exit_code == 2


def test_guidelines_are_set_and_shown(fake: FakeRewardloop) -> None:
    Path("page.md").write_text("# Be fair\n")
    version = json.loads(run("guidelines", "set", "page.md", "--project", "shop", "--json").stdout)["version"]
    assert run("guidelines", "show", "--project", "shop").stdout == "# Be fair\n"
    assert json.loads(run("guidelines", "show", "--project", "shop", "--json").stdout)["version"] == version
    assert run("guidelines", "set", "absent.md", "--project", "shop").exit_code == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "is a list, not an object"),
        ({"prompt": "p", "question": "q"}, "has prompt and question"),
        ({"prompt": "p", "responses": ["a"], "completions": ["b"]}, "leave one out"),
        ({"prompt": "p", "responses": []}, "responses: is not a list of texts"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "no answer"),
        ({"prompt": "p", "responses": ["a", "b"], "aspect": 3}, "aspect: is a number"),
    ],
)
def test_a_row_that_is_not_clear_is_refused_with_the_reason(row: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        question_of(row, Choices())
