"""The labelling service in memory keeps the rules of the contract, through the same client as over gRPC."""

from __future__ import annotations

import pytest

from rewardloop_client import (
    AddedTask,
    InvalidRequest,
    LeaseAnswered,
    NewTask,
    NothingToUndo,
    TaskRetracted,
    TaskTaken,
    UnknownGuidelines,
    UnknownLease,
    UnknownProject,
    Verdict,
)
from rewardloop_client.fake import FakeRewardloop


def _task(prompt: str = "p", **more) -> NewTask:
    return NewTask(kinds=["choice", "edit"], prompt=prompt, candidates=["good", "bad"], **more)


@pytest.fixture
def fake() -> FakeRewardloop:
    return FakeRewardloop()


def test_an_answer_becomes_a_signal_about_the_candidates_as_they_were_added(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task(str(i), tags={"slice": "a"}) for i in range(8)], import_id="i1")
    for _ in range(8):
        task = fake.labelling.next_task("shop", labeller="anna").task
        assert task is not None
        best = task.candidates.index("good")
        verdict = Verdict.choice(best, 1 - best)
        assert not fake.labelling.answer("shop", task.lease_id, verdict, labeller="anna").duplicate
    assert fake.labelling.next_task("shop", labeller="anna").no_task == "all_done"
    assert [(e.choice.chosen, e.choice.rejected) for e in fake.events] == [(0, 1)] * 8
    assert {tuple(e.display_order) for e in fake.events} == {(0, 1), (1, 0)}
    assert {(e.annotator_id, e.tags["source"], e.tags["slice"]) for e in fake.events} == {("anna", "console", "a")}


def test_who_asks_again_gets_the_same_task_in_the_same_order(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task("1"), _task("2")], import_id="i1")
    first = fake.labelling.next_task("shop", labeller="anna").task
    other = fake.labelling.next_task("shop", labeller="bert").task
    again = fake.labelling.next_task("shop", labeller="anna").task
    assert first is not None
    assert again is not None
    assert other is not None
    assert (first.lease_id, first.candidates) == (again.lease_id, again.candidates)
    assert other.task_id != first.task_id
    assert fake.labelling.next_task("shop", labeller="cleo").no_task == "all_taken"


def test_the_same_answer_is_recorded_once_and_another_refused(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task()], import_id="i1")
    task = fake.labelling.next_task("shop", labeller="anna").task
    assert task is not None
    fake.labelling.answer("shop", task.lease_id, Verdict.choice(0, 1), labeller="anna")
    assert fake.labelling.answer("shop", task.lease_id, Verdict.choice(0, 1), labeller="anna").duplicate
    with pytest.raises(LeaseAnswered):
        fake.labelling.answer("shop", task.lease_id, Verdict.tie(), labeller="anna")
    with pytest.raises(UnknownLease):
        fake.labelling.answer("shop", task.lease_id, Verdict.tie(), labeller="bert")
    assert len(fake.events) == 1


def test_a_late_answer_is_taken_unless_others_have_the_task(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task("1"), _task("2")], import_id="i1")
    late = fake.labelling.next_task("shop", labeller="anna").task
    assert late is not None
    fake.label_queue.end_leases()
    taken = fake.labelling.next_task("shop", labeller="bert").task
    assert taken is not None
    assert taken.task_id == late.task_id
    with pytest.raises(TaskTaken):
        fake.labelling.answer("shop", late.lease_id, Verdict.choice(0, 1), labeller="anna")
    fake.label_queue.end_leases()
    fake.labelling.answer("shop", late.lease_id, Verdict.choice(0, 1), labeller="anna")
    with pytest.raises(TaskTaken):
        fake.labelling.answer("shop", taken.lease_id, Verdict.choice(0, 1), labeller="bert")


def test_undo_takes_the_signal_back_and_gives_the_task_again(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task("1"), _task("2")], import_id="i1")
    first = fake.labelling.next_task("shop", labeller="anna").task
    assert first is not None
    fake.labelling.answer("shop", first.lease_id, Verdict.choice(1, 0), labeller="anna", comment="why")
    fake.labelling.next_task("shop", labeller="anna")
    undone = fake.labelling.undo("shop", labeller="anna")
    assert (undone.task.task_id, undone.task.candidates) == (first.task_id, first.candidates)
    assert (undone.verdict.choice.chosen, undone.comment, undone.answered) == (1, "why", 0)
    assert fake.events == []
    with pytest.raises(NothingToUndo):
        fake.labelling.undo("shop", labeller="anna")
    again = fake.labelling.next_task("shop", labeller="anna").task
    assert again is not None
    assert again.lease_id == undone.task.lease_id


def test_a_task_of_two_imports_counts_once_and_stays_until_both_are_taken_back(fake: FakeRewardloop) -> None:
    (added,) = fake.labelling.add_tasks("shop", [_task()], import_id="i1")
    (again,) = fake.labelling.add_tasks("shop", [_task()], import_id="i2")
    assert isinstance(added, AddedTask)
    assert again == AddedTask(added.task_id, duplicate=True)
    task = fake.labelling.next_task("shop", labeller="anna").task
    assert task is not None
    assert fake.labelling.retract_tasks("shop", "i1").tasks == 0
    assert fake.labelling.retract_tasks("shop", "i2").tasks == 1
    with pytest.raises(TaskRetracted):
        fake.labelling.answer("shop", task.lease_id, Verdict.tie(), labeller="anna")


def test_progress_and_answers_say_what_was_said(fake: FakeRewardloop) -> None:
    fake.labelling.add_tasks("shop", [_task(overlap=2, versions=["7", "8"])], import_id="i1")
    for who in ("anna", "bert"):
        task = fake.labelling.next_task("shop", labeller=who).task
        assert task is not None
        chosen = task.candidates.index("good")
        fake.labelling.answer("shop", task.lease_id, Verdict.choice(chosen, 1 - chosen), labeller=who, seconds=2.0)
    (progress,) = fake.labelling.progress("shop")
    assert (progress.tasks, progress.done, progress.open, progress.answers) == (1, 1, 0, 2)
    assert progress.answers_by_kind == {"choice": 2}
    assert progress.agreement is not None
    assert progress.agreement.share == 1.0
    answers = list(fake.labelling.answers("shop", page_size=1))
    assert [(a.labeller, a.versions, a.verdict.choice.chosen) for a in answers] == [
        ("anna", ("7", "8"), 0),
        ("bert", ("7", "8"), 0),
    ]


def test_guidelines_have_a_version_and_old_ones_stay(fake: FakeRewardloop) -> None:
    first = fake.labelling.set_guidelines("shop", "# Be fair")
    second = fake.labelling.set_guidelines("shop", "# Be fairer")
    assert first != second
    assert fake.labelling.guidelines("shop").text == "# Be fairer"
    assert fake.labelling.guidelines("shop", version=first).text == "# Be fair"
    with pytest.raises(UnknownGuidelines):
        fake.labelling.guidelines("shop", version="none")


def test_bad_tasks_and_unknown_projects_are_refused(fake: FakeRewardloop) -> None:
    bad = NewTask(kinds=["choice"], prompt="p", candidates=["a", "b", "c"])
    good, refused = fake.labelling.add_tasks("shop", [_task(), bad], import_id="i1")
    assert isinstance(good, AddedTask)
    assert isinstance(refused, InvalidRequest)
    assert refused.violations[0].field == "kinds[0]"
    with pytest.raises(UnknownProject):
        fake.labelling.next_task("none", labeller="anna")
    with pytest.raises(InvalidRequest):
        fake.labelling.next_task("shop")
