"""What a valid labelling task and verdict are, the signals of a verdict, and how two are compared."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardloop.formats.labelling.tasks import (
    guidelines_version,
    import_problems,
    overlap_of,
    project_problem,
    scale_of,
    task_id,
    task_problems,
)
from rewardloop.formats.labelling.verdicts import (
    compared,
    comparisons,
    in_added_order,
    in_shown_order,
    signals_of,
    verdict_problems,
)
from rewardloop.v1 import labelling_pb2

CHOICE, RANKING, RATING, EDIT = (
    labelling_pb2.ANSWER_KIND_CHOICE,
    labelling_pb2.ANSWER_KIND_RANKING,
    labelling_pb2.ANSWER_KIND_RATING,
    labelling_pb2.ANSWER_KIND_EDIT,
)


def task(*texts: str, kinds: tuple[int, ...] = (CHOICE,), **more: object) -> labelling_pb2.NewTask:
    candidates = [{"text": text} for text in texts]
    return labelling_pb2.NewTask(prompt={"text": "p"}, candidates=candidates, kinds=kinds, **more)  # type: ignore[arg-type]


def verdict(**said: object) -> labelling_pb2.Verdict:
    return labelling_pb2.Verdict(**said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (task("a", "b"), []),
        (task("a", "b", kinds=(CHOICE, RANKING, RATING, EDIT)), []),
        (task("a", kinds=(RATING, EDIT)), []),
        (task(), ["candidates"]),
        (task(*"abcdefghi", kinds=(RANKING,)), ["candidates"]),
        (task("a", "b", "c"), ["kinds[0]"]),
        (task("a", kinds=(RANKING,)), ["kinds[0]"]),
        (task("a", "b", kinds=()), ["kinds"]),
        (task("a", "b", kinds=(CHOICE, CHOICE)), ["kinds"]),
        (task("a", "b", kinds=(0,)), ["kinds[0]"]),
        (task("a", "b", rating_scale={"minimum": 2, "maximum": 2}), ["rating_scale"]),
        (task("a", "b", rating_scale={"minimum": 0, "maximum": float("inf")}), ["rating_scale"]),
        (task("a", "b", overlap=101), ["overlap"]),
        (task("a", "b", overlap=-1), ["overlap"]),
        (task("a", "b", tags={"source": "x"}), ["tags"]),
        (task("a", "b", tags={str(i): "" for i in range(15)}), ["tags"]),
        (task("a", "b", tags={"k" * 65: ""}), ["tags"]),
    ],
)
def test_problems_of_a_task_name_their_fields(made: labelling_pb2.NewTask, fields: list[str]) -> None:
    assert [field for field, _ in task_problems(made)] == fields


def test_a_task_is_known_by_what_is_asked_and_by_nothing_else() -> None:
    same = [
        task("a", "b", kinds=(CHOICE, EDIT)),
        task("a", "b", kinds=(EDIT, CHOICE), tags={"k": "v"}, overlap=3, aspect="reward"),
        task("a", "b", kinds=(CHOICE, EDIT), rating_scale={"minimum": 1, "maximum": 5}),
    ]
    other = [task("b", "a", kinds=(CHOICE, EDIT)), task("a", "b"), task("a", "b", kinds=(CHOICE, EDIT), aspect="x")]
    assert len({task_id(each) for each in same}) == 1
    assert len({task_id(each) for each in [same[0], *other]}) == 4
    assert scale_of(same[0]) == (1.0, 5.0)


def test_shared_tasks_are_a_share_of_all_and_always_the_same_ones() -> None:
    names = [task_id(task(str(i), "b")) for i in range(2_000)]
    shared = [overlap_of(task("a", "b", overlap=2), name, 0.25, 5) for name in names]
    assert set(shared) == {2, 5}
    assert 430 <= shared.count(5) <= 570  # 500 expected, with a standard deviation of 19
    assert shared == [overlap_of(task("a", "b", overlap=2), name, 0.25, 5) for name in names]


@pytest.mark.parametrize("name", ["", "Shop", "-x", "a b", "a" * 65, "a/b", "{x}"])
def test_names_that_no_project_has_are_refused(name: str) -> None:
    assert project_problem(name)
    assert project_problem("shop-2.a_b") is None


def test_problems_of_an_import_name_their_fields() -> None:
    bad = labelling_pb2.AddTasksRequest(project="X", shared_share=0.5, shared_overlap=1)
    assert [field for field, _ in import_problems(bad)] == ["project", "import_id", "shared_overlap"]
    nan = labelling_pb2.AddTasksRequest(project="x", import_id="i", shared_share=float("nan"))
    assert [field for field, _ in import_problems(nan)] == ["shared_share"]


@pytest.mark.parametrize(
    ("made", "said", "fields"),
    [
        (task("a", "b"), verdict(choice={"chosen": 0, "rejected": 1}), []),
        (task("a", "b"), verdict(tie={"first": 0, "second": 1}), []),
        (task("a", "b"), verdict(skip={"reason": "unclear"}), []),
        (task("a", "b"), verdict(skip={"reason": " "}), ["verdict.skip.reason"]),
        (task("a", "b"), verdict(choice={"chosen": 0, "rejected": 2}), ["verdict.choice.rejected"]),
        (task("a", "b"), verdict(choice={"chosen": 1, "rejected": 1}), ["verdict.choice.rejected"]),
        (task("a", "b"), verdict(edit={"response": 0, "edited_text": "x"}), ["verdict.edit"]),
        (task("a", kinds=(EDIT,)), verdict(edit={"response": 0, "edited_text": "a"}), ["verdict.edit.edited_text"]),
        (task("a", "b", "c", kinds=(RANKING,)), verdict(ranking={"order": [0, 1]}), ["verdict.ranking.order"]),
        (task("a", kinds=(RATING,)), verdict(ratings={}), ["verdict.ratings"]),
        (
            task("a", kinds=(RATING,)),
            verdict(ratings={"ratings": [{"response": 0, "value": 9}]}),
            ["verdict.rating.value"],
        ),
        (
            task("a", "b", kinds=(RATING,)),
            verdict(ratings={"ratings": [{"response": 0, "value": 1}, {"response": 0, "value": 2}]}),
            ["verdict.ratings"],
        ),
    ],
)
def test_problems_of_a_verdict_name_their_fields(
    made: labelling_pb2.NewTask, said: labelling_pb2.Verdict, fields: list[str]
) -> None:
    assert [field for field, _ in verdict_problems(made, said)] == fields


VERDICTS = st.one_of(
    st.permutations(range(4)).map(lambda order: verdict(ranking={"order": order})),
    st.permutations(range(4)).map(lambda order: verdict(choice={"chosen": order[0], "rejected": order[1]})),
    st.permutations(range(4)).map(lambda order: verdict(tie={"first": order[0], "second": order[1]})),
    st.integers(0, 3).map(lambda i: verdict(edit={"response": i, "edited_text": "x"})),
    st.dictionaries(st.integers(0, 3), st.integers(1, 5), min_size=1).map(
        lambda grades: verdict(ratings={"ratings": [{"response": i, "value": v} for i, v in grades.items()]})
    ),
)


@given(said=VERDICTS, order=st.permutations(range(4)))
def test_the_order_of_display_changes_indices_and_nothing_else(said: labelling_pb2.Verdict, order: list[int]) -> None:
    assert in_shown_order(in_added_order(said, order), order) == said
    assert in_added_order(in_shown_order(said, order), order) == said


def test_an_index_of_no_candidate_stays_out_of_range() -> None:
    said = in_added_order(verdict(choice={"chosen": -1, "rejected": 2}), [1, 0])
    assert (said.choice.chosen, said.choice.rejected) == (-1, 2)


def test_each_grade_is_a_signal_on_the_scale_of_the_task() -> None:
    made = task("a", "b", kinds=(RATING,), rating_scale={"minimum": 0, "maximum": 10})
    said = verdict(ratings={"ratings": [{"response": 1, "value": 7}, {"response": 0, "value": 2}]})
    signals = [(s.rating.response, s.rating.value, s.rating.minimum, s.rating.maximum) for s in signals_of(made, said)]
    assert signals == [(1, 7.0, 0.0, 10.0), (0, 2.0, 0.0, 10.0)]
    assert signals_of(made, verdict(skip={"reason": "x"})) == []


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        (verdict(choice={"chosen": 2, "rejected": 0}), "?<?"),
        (verdict(tie={"first": 1, "second": 0}), "=??"),
        (verdict(ranking={"order": [2, 0, 1]}), "><<"),
        (verdict(ratings={"ratings": [{"response": i, "value": v} for i, v in ((0, 3), (1, 3), (2, 1))]}), "=>>"),
        (verdict(edit={"response": 0, "edited_text": "x"}), "???"),
        (verdict(skip={"reason": "x"}), "???"),
    ],
)
def test_a_verdict_says_of_each_pair_which_is_better(said: labelling_pb2.Verdict, marks: str) -> None:
    assert comparisons(3, said) == marks


def test_two_verdicts_are_compared_by_the_pairs_that_both_name() -> None:
    assert compared("><?", ">>=") == (2, 1)
    orders = [verdict(ranking={"order": order}) for order in permutations(range(3))]
    assert [compared(comparisons(3, orders[0]), comparisons(3, each)) for each in orders] == [
        *[(3, 3), (3, 2), (3, 2), (3, 1), (3, 1), (3, 0)]
    ]


def test_guidelines_have_the_version_of_their_text() -> None:
    assert guidelines_version("a") == guidelines_version("a") != guidelines_version("b")
    assert guidelines_version("") == ""
