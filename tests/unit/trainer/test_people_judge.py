"""People's answers, as the console's tasks export them, judge two policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewardloop.formats.text import Turn
from rewardloop_cli.label.forms import everything
from rewardloop_client import NewTask, Verdict
from rewardloop_client.fake import FakeRewardloop
from rewardloop_trainer.assessment.policies.head_to_head import Answers
from rewardloop_trainer.assessment.policies.people import PeopleJudge, UnusableAnswers, write_pairs
from rewardloop_trainer.judging.judge import Duel

PROMPT = (Turn("user", "Why?"),)


def exported(path: Path, *verdicts: Verdict) -> Path:
    """What labellers say of "b" and "a", in this order, as `label export --format answers` writes it."""
    fake = FakeRewardloop()
    task = NewTask(kinds=["choice"], prompt="Why?", candidates=["b", "a"], overlap=len(verdicts))
    fake.labelling.add_tasks("p", [task], import_id="i")
    for number, verdict in enumerate(verdicts):
        offer = fake.labelling.next_task("p", labeller=f"p{number}").task
        assert offer is not None
        fake.labelling.answer("p", offer.lease_id, verdict, labeller=f"p{number}")
    rows = [row for answer in fake.labelling.answers("p") for row in everything(answer)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_majority_of_labellers_decides_in_either_order(tmp_path: Path) -> None:
    said = [Verdict.choice(0, 1), Verdict.choice(0, 1), Verdict.choice(0, 1), Verdict.tie(0, 1), Verdict.skip("odd")]
    path = exported(tmp_path / "answers.jsonl", *said)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [[each["text"] for each in row["candidates"]] for row in rows]
    won = [texts[i][row["verdict"]["choice"]["chosen"]] for i, row in enumerate(rows) if "choice" in row["verdict"]]
    share = (won.count("a") + 0.5) / 4
    judge = PeopleJudge.read([path])
    first, second, unasked = judge.compare([Duel(PROMPT, "a", "b"), Duel(PROMPT, "b", "a"), Duel(PROMPT, "a", "c")])
    assert first is not None
    assert second is not None
    assert unasked is None
    assert (first.probability, second.probability) == (pytest.approx(share), pytest.approx(1 - share))
    assert first.choice != second.choice
    assert first.first_shown == pytest.approx((3 + 0.5) / 4)  # all three took what they saw first
    assert judge.name == "4 people"


def test_rows_of_another_form_are_refused_with_their_line(tmp_path: Path) -> None:
    path = exported(tmp_path / "answers.jsonl", Verdict.choice(0, 1))
    row = json.loads(path.read_text())
    for wrong in (
        {**row, "candidates": row["candidates"] * 2},
        {**row, "verdict": {"ranking": {"order": [0, 1]}}},
        {**row, "verdict": {"choice": {"chosen": 3, "rejected": 1}}},
        {key: value for key, value in row.items() if key != "annotator"},
        [],
    ):
        path.write_text(json.dumps(row) + "\n" + json.dumps(wrong) + "\n")
        with pytest.raises(UnusableAnswers, match=r"answers\.jsonl:2: "):
            PeopleJudge.read([path])
    path.write_text(json.dumps({**row, "verdict": {"skip": {}}}) + "\n")
    with pytest.raises(UnusableAnswers, match="no answer of people"):
        PeopleJudge.read([path])


def test_pairs_that_nobody_could_choose_of_are_not_asked(tmp_path: Path) -> None:
    ours, theirs = (
        Answers(name, [[text, "more"] for text in texts], [[1, 1]] * 3)
        for name, texts in (("ours", ["x", "same", " "]), ("theirs", ["y", "same", "z"]))
    )
    path = tmp_path / "deep" / "pairs.jsonl"
    assert write_pairs(path, [(Turn("user", f"q{i}"),) for i in range(3)], ours, theirs) == 1
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row == {"prompt": [{"role": "user", "content": "q0"}], "responses": ["x", "y"]}
