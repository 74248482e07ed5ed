"""The LabellingService over real gRPC and a real redis-server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from support.labelling_desks import Desk, labelling, pair, signals_in

from rewardloop.formats import keys
from rewardloop.v1 import policy_pb2
from rewardloop_client import (
    AddedTask,
    InvalidRequest,
    LabellingTask,
    LeaseAnswered,
    NewTask,
    NothingToUndo,
    TaskRetracted,
    TaskTaken,
    TooManySignals,
    UnknownGeneration,
    UnknownGuidelines,
    UnknownLease,
    UnknownProject,
    Verdict,
)
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.labelling.queue import QueueRules

ORDERED = QueueRules(uniform_share=0.0)


@pytest.fixture
async def desk(redis: Redis) -> AsyncIterator[Desk]:
    async with labelling(redis, ORDERED) as made:
        yield made


async def task_of(desk: Desk, who: str, project: str = "shop") -> LabellingTask:
    offer = await desk.client.labelling.next_task(project, labeller=who)
    assert offer.task is not None, offer
    return offer.task


async def choose(desk: Desk, task: LabellingTask, who: str, best: str = "first", **more: object) -> None:
    chosen = task.candidates.index(best)
    verdict = Verdict.choice(chosen, 1 - chosen)
    await desk.client.labelling.answer("shop", task.lease_id, verdict, labeller=who, **more)  # type: ignore[arg-type]


async def end_leases(redis: Redis, project: str = "shop") -> None:
    """Let the time of all leases pass."""
    base = keys.labelling_prefix(project)
    for lease in await redis.zrange(base + "leases", 0, -1):
        await redis.zadd(base + "leases", {lease: 1})


async def test_an_answer_is_a_signal_with_its_order_its_draw_and_its_labeller(desk: Desk, redis: Redis) -> None:
    tasks = [pair(i, tags={"slice": "a"}) for i in range(12)]
    added = await desk.client.labelling.add_tasks("shop", tasks, import_id="i1")
    assert all(isinstance(each, AddedTask) and not each.duplicate for each in added)
    for left in range(11, -1, -1):
        offer = await desk.client.labelling.next_task("shop", labeller="anna")
        assert offer.task is not None
        assert offer.left == left
        await choose(desk, offer.task, "anna", seconds=1.5, guideline_version="g1")
    assert (await desk.client.labelling.next_task("shop", labeller="anna")).no_task == "all_done"
    events = await signals_in(redis)
    assert Counter(event.prompt.text for event in events) == Counter(f"p{i}" for i in range(12))
    for event in events:
        assert (event.choice.chosen, event.choice.rejected) == (0, 1)
        assert (event.annotator_id, event.guideline_version) == ("anna", "g1")
        assert dict(event.tags) == {"slice": "a", "source": "console"}
        assert (event.task.project, event.task.probability, event.task.seconds) == ("shop", 1.0, 1.5)
        assert list(event.responses) == ["first", "second"]
    assert {tuple(event.display_order) for event in events} == {(0, 1), (1, 0)}


async def test_who_asks_again_gets_the_same_task_in_the_same_order(desk: Desk, redis: Redis) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(i) for i in range(3)], import_id="i1")
    first = await task_of(desk, "anna")
    assert (await task_of(desk, "anna")).lease_id == first.lease_id
    await end_leases(redis)
    again = await task_of(desk, "anna")
    assert (again.lease_id, again.candidates) == (first.lease_id, first.candidates)
    assert (await task_of(desk, "bert")).task_id != first.task_id


async def test_nobody_gets_a_task_that_has_all_its_labellers(desk: Desk) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1, overlap=2)], import_id="i1")
    assert (await task_of(desk, "anna")).task_id == (await task_of(desk, "bert")).task_id
    refused = await desk.client.labelling.next_task("shop", labeller="cleo")
    assert (refused.task, refused.no_task) == (None, "all_taken")


async def test_the_same_answer_counts_once_and_another_is_refused(desk: Desk, redis: Redis) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i1")
    task = await task_of(desk, "anna")
    answer = desk.client.labelling.answer
    assert not (await answer("shop", task.lease_id, Verdict.choice(0, 1), labeller="anna")).duplicate
    assert (await answer("shop", task.lease_id, Verdict.choice(0, 1), labeller="anna", seconds=9.0)).duplicate
    with pytest.raises(LeaseAnswered):
        await answer("shop", task.lease_id, Verdict.tie(), labeller="anna")
    with pytest.raises(UnknownLease):
        await answer("shop", task.lease_id, Verdict.tie(), labeller="bert")
    assert len(await signals_in(redis)) == 1


async def test_a_late_answer_is_taken_if_there_is_a_place_and_refused_with_the_reason_if_not(
    desk: Desk, redis: Redis
) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i1")
    late = await task_of(desk, "anna")
    await end_leases(redis)
    taken = await task_of(desk, "bert")
    with pytest.raises(TaskTaken):
        await choose(desk, late, "anna")
    await end_leases(redis)
    await choose(desk, late, "anna")
    with pytest.raises(TaskTaken):
        await choose(desk, taken, "bert")
    (event,) = await signals_in(redis)
    assert event.annotator_id == "anna"


async def test_undo_takes_back_one_answer_after_the_other_and_gives_the_tasks_again(desk: Desk, redis: Redis) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(i) for i in range(3)], import_id="i1")
    first = await task_of(desk, "anna")
    await choose(desk, first, "anna", comment="because")
    second = await task_of(desk, "anna")
    await desk.client.labelling.answer("shop", second.lease_id, Verdict.skip("unclear"), labeller="anna")
    third = await task_of(desk, "anna")
    undone = await desk.client.labelling.undo("shop", labeller="anna")
    assert (undone.task.task_id, undone.verdict.skip.reason) == (second.task_id, "unclear")
    undone = await desk.client.labelling.undo("shop", labeller="anna")
    assert (undone.task.task_id, undone.task.candidates) == (first.task_id, first.candidates)
    assert undone.task.candidates[undone.verdict.choice.chosen] == "first"
    assert (undone.comment, undone.answered) == ("because", 0)
    assert await signals_in(redis) == []
    with pytest.raises(NothingToUndo):
        await desk.client.labelling.undo("shop", labeller="anna")
    with pytest.raises(UnknownLease):
        await choose(desk, first, "anna")
    for expected in (first, second, third):
        task = await task_of(desk, "anna")
        assert task.task_id == expected.task_id
        await choose(desk, task, "anna", best="second")
    assert [event.choice.chosen for event in await signals_in(redis)] == [1, 1, 1]


async def test_a_task_that_many_skip_is_given_up(desk: Desk) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i1")
    for who in ("anna", "bert", "cleo"):
        task = await task_of(desk, who)
        await desk.client.labelling.answer("shop", task.lease_id, Verdict.skip("unclear"), labeller=who)
    assert (await desk.client.labelling.next_task("shop", labeller="dora")).no_task == "all_done"
    (progress,) = await desk.client.labelling.progress("shop")
    assert (progress.given_up, progress.open, progress.skips) == (1, 0, {"unclear": 3})
    await desk.client.labelling.undo("shop", labeller="cleo")
    (progress,) = await desk.client.labelling.progress("shop")
    assert (progress.given_up, progress.leases, progress.skips) == (0, 1, {"unclear": 2})


async def test_ratings_rankings_and_edits_count_the_candidates_as_they_were_added(desk: Desk, redis: Redis) -> None:
    texts = ["a", "b", "c", "d"]
    kinds = {"ranking": ["ranking"], "rating": ["rating"], "edit": ["edit"]}
    new = [NewTask(kinds=k, prompt=name, candidates=texts, scale=(0, 10)) for name, k in kinds.items()]  # type: ignore[arg-type]
    await desk.client.labelling.add_tasks("shop", new, import_id="i1")
    for _ in new:
        task = await task_of(desk, "anna")
        place = [task.candidates.index(text) for text in texts]
        verdict = {
            "ranking": Verdict.ranking(place),
            "rating": Verdict.ratings({place[0]: 9.0, place[3]: 1.0}),
            "edit": Verdict.edit("better", response=place[2]),
        }[task.kinds[0]]
        await desk.client.labelling.answer("shop", task.lease_id, verdict, labeller="anna")
    said = {}
    for event in await signals_in(redis):
        said.setdefault(event.WhichOneof("signal"), []).append(event)
    assert list(said["ranking"][0].ranking.order) == [0, 1, 2, 3]
    grades = [(e.rating.response, e.rating.value, e.rating.minimum, e.rating.maximum) for e in said["rating"]]
    assert grades == [(0, 9.0, 0.0, 10.0), (3, 1.0, 0.0, 10.0)]
    assert (said["edit"][0].edit.response, said["edit"][0].edit.edited_text) == (2, "better")


async def test_a_refused_answer_is_not_recorded_and_the_labeller_keeps_the_task(redis: Redis) -> None:
    async with labelling(redis, ORDERED, Caps(per_minute=1)) as desk:
        grade = NewTask(kinds=["rating"], prompt="p", candidates=["a", "b"])
        await desk.client.labelling.add_tasks("shop", [grade], import_id="i1")
        task = await task_of(desk, "anna")
        with pytest.raises(TooManySignals):
            await desk.client.labelling.answer("shop", task.lease_id, Verdict.ratings({0: 1, 1: 2}), labeller="anna")
        assert await signals_in(redis) == []  # the first grade was appended, and taken back
        assert (await task_of(desk, "anna")).lease_id == task.lease_id
        (progress,) = await desk.client.labelling.progress("shop")
        assert (progress.answers, progress.leases) == (0, 1)


async def test_answers_about_a_generation_carry_how_it_was_shown(desk: Desk, redis: Redis) -> None:
    generation = policy_pb2.Generation(generation_id="g1", temperature=0.5, show_probabilities=[1.0, 1.0])
    generation.prompt.text = "hello"
    generation.policy_version.version = "7"
    for text in ("first", "second"):
        generation.candidates.add(text=text, log_probability=-1.0, token_count=3)
    await desk.generations.put(generation)
    tasks = [NewTask(kinds=["choice"], generation_id=name) for name in ("g1", "gone")]
    known, unknown = await desk.client.labelling.add_tasks("shop", tasks, import_id="i1")
    assert isinstance(known, AddedTask)
    assert isinstance(unknown, UnknownGeneration)
    await redis.delete(keys.GENERATION + "g1")  # the log forgets it before it is judged
    await choose(desk, await task_of(desk, "anna"), "anna")
    (event,) = await signals_in(redis)
    assert (event.generation_id, event.policy_version.version, event.shown.temperature) == ("g1", "7", 0.5)
    assert (event.prompt.text, list(event.responses)) == ("hello", ["first", "second"])
    answers = [answer async for answer in desk.client.labelling.answers("shop")]
    assert answers[0].versions == ("7", "7")


async def test_an_import_is_taken_back_with_what_was_answered_about_it(desk: Desk, redis: Redis) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i1")
    await choose(desk, await task_of(desk, "anna"), "anna")
    await desk.client.labelling.add_tasks("shop", [pair(2)], import_id="i1")
    (again,) = await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i2")
    assert isinstance(again, AddedTask)
    assert again.duplicate
    held = await task_of(desk, "anna")
    gone = await desk.client.labelling.retract_tasks("shop", "i1")
    assert (gone.tasks, gone.answers) == (1, 0)  # the other belongs to i2 as well
    with pytest.raises(TaskRetracted):
        await choose(desk, held, "anna")
    gone = await desk.client.labelling.retract_tasks("shop", "i2", answers=True)
    assert (gone.tasks, gone.answers) == (1, 1)
    assert await signals_in(redis) == []
    (progress,) = await desk.client.labelling.progress("shop")
    assert (progress.tasks, progress.open, progress.leases) == (0, 0, 0)
    added = await desk.client.labelling.add_tasks("shop", [pair(1), pair(2)], import_id="i3")
    assert [each.duplicate for each in added if isinstance(each, AddedTask)] == [False, False]
    assert (await desk.client.labelling.next_task("shop", labeller="bert")).task is not None


async def test_answers_that_are_taken_back_with_their_tasks_leave_the_ledger(desk: Desk, redis: Redis) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(i, overlap=2) for i in range(120)], import_id="i1")
    for who in ("anna", "bert"):
        for _ in range(60):
            await choose(desk, await task_of(desk, who), who)
    assert len(await signals_in(redis)) == 120
    gone = await desk.client.labelling.retract_tasks("shop", "i1", answers=True)
    assert (gone.tasks, gone.answers) == (120, 120)
    assert await signals_in(redis) == []
    (progress,) = await desk.client.labelling.progress("shop")
    assert (progress.tasks, progress.answers, progress.agreement, progress.answers_by_kind) == (0, 0, None, {})
    assert [each.answers for each in progress.labellers] == [0, 0]
    left = {key.decode().split("}:")[1].split(":")[0] for key in await redis.keys(keys.labelling_prefix("shop") + "*")}
    assert left <= {"people", "who", "meta", "answers"}  # the last one is an empty stream


async def test_progress_tells_kinds_agreement_and_each_labeller(desk: Desk) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(i, overlap=3) for i in range(2)], import_id="i1")
    for who, best in (("anna", "first"), ("bert", "first"), ("cleo", "second")):
        for _ in range(2):
            await choose(desk, await task_of(desk, who), who, best=best, seconds=2.0)
    (progress,) = await desk.client.labelling.progress("shop")
    assert (progress.tasks, progress.done, progress.answers) == (2, 2, 6)
    assert progress.answers_by_kind == {"choice": 6}
    assert progress.agreement is not None
    assert (progress.agreement.compared, progress.agreement.agreed) == (6, 2)
    people = {each.labeller: each for each in progress.labellers}
    assert {who: (p.answers, p.seconds, p.agreement.share) for who, p in people.items() if p.agreement} == {
        "anna": (2, 4.0, 0.5),
        "bert": (2, 4.0, 0.5),
        "cleo": (2, 4.0, 0.0),
    }
    await desk.client.labelling.undo("shop", labeller="cleo")
    (progress,) = await desk.client.labelling.progress("shop")
    assert progress.agreement is not None
    assert (progress.agreement.compared, progress.agreement.agreed) == (4, 2)
    assert (progress.done, progress.answers) == (1, 5)


async def test_answers_are_listed_page_by_page_with_what_labellers_were_not_told(desk: Desk) -> None:
    await desk.client.labelling.add_tasks(
        "shop", [pair(i, versions=["secret-a", "secret-b"]) for i in range(7)], import_id="i1"
    )
    for _ in range(7):
        task = await task_of(desk, "anna")
        assert "secret" not in str(task)
        await choose(desk, task, "anna", comment="c")
    pages = []
    token = ""
    while True:
        page = await desk.client.labelling.list_answers("shop", page_size=3, page_token=token)
        pages.append(len(page.answers))
        assert {(a.versions, a.candidates, a.comment) for a in page.answers} == {
            (("secret-a", "secret-b"), ("first", "second"), "c")
        }
        if not (token := page.next_page_token):
            break
    assert pages == [3, 3, 1]
    for wrong in ("x", "9" * 25 + "-1", "1-" + "9" * 25, "-1"):
        with pytest.raises(InvalidRequest):
            await desk.client.labelling.list_answers("shop", page_token=wrong)


async def test_a_share_of_tasks_is_given_to_more_labellers(desk: Desk) -> None:
    tasks = [pair(i) for i in range(200)]
    await desk.client.labelling.add_tasks("shop", tasks, import_id="i1", shared_share=0.3, shared_overlap=2)
    shared = 0
    for who in ("anna", "bert"):
        offer = await desk.client.labelling.next_task("shop", labeller=who)
        while offer.task is not None:
            await choose(desk, offer.task, who)
            offer = await desk.client.labelling.next_task("shop", labeller=who)
        shared = offer.answered
    assert 40 <= shared <= 80


async def test_labellers_answer_some_tasks_twice_if_the_server_says_so(redis: Redis) -> None:
    async with labelling(redis, QueueRules(uniform_share=0.0, repeat_share=0.5)) as desk:
        await desk.client.labelling.add_tasks("shop", [pair(i) for i in range(40)], import_id="i1")
        seen = Counter()
        while (offer := await desk.client.labelling.next_task("shop", labeller="anna")).task is not None:
            seen[offer.task.task_id] += 1
            await choose(desk, offer.task, "anna")
        assert len(seen) == 40
        assert set(seen.values()) == {1, 2}
        (progress,) = await desk.client.labelling.progress("shop")
        repeats = sum(count == 2 for count in seen.values())
        assert (progress.answers, progress.labellers[0].repeats) == (40, repeats)
        assert progress.self_agreement is not None
        assert (progress.self_agreement.compared, progress.self_agreement.agreed) == (repeats, repeats)
        marked = [event for event in await signals_in(redis) if event.tags.get("repeat") == "true"]
        assert len(marked) == repeats


async def test_guidelines_have_versions_and_a_task_names_the_present_one(desk: Desk) -> None:
    first = await desk.client.labelling.set_guidelines("shop", "# Be fair")
    await desk.client.labelling.add_tasks("shop", [pair(1)], import_id="i1")
    assert (await task_of(desk, "anna")).guideline_version == first
    second = await desk.client.labelling.set_guidelines("shop", "# Be fairer")
    assert (await desk.client.labelling.guidelines("shop")).version == second
    assert (await desk.client.labelling.guidelines("shop", version=first)).text == "# Be fair"
    with pytest.raises(UnknownGuidelines):
        await desk.client.labelling.guidelines("shop", version="none")
    assert await desk.client.labelling.set_guidelines("shop", "") == ""
    assert (await desk.client.labelling.guidelines("shop")).text == ""


async def test_bad_requests_name_their_fields(desk: Desk) -> None:
    three = NewTask(kinds=["choice"], prompt="p", candidates=["a", "b", "c"])
    empty = NewTask(kinds=["rating"], prompt="p", candidates=["a", " "])
    many = NewTask(kinds=["rating"], prompt="p", candidates=["a"] * 9)
    other = NewTask(kinds=["rating"], prompt="p", candidates=["a"], aspect="charm")
    outcomes = await desk.client.labelling.add_tasks("shop", [pair(1), three, empty, many, other], import_id="i1")
    assert isinstance(outcomes[0], AddedTask)
    fields = [each.violations[0].field for each in outcomes[1:] if isinstance(each, InvalidRequest)]
    assert fields == ["tasks[1].kinds[0]", "tasks[2].responses[1]", "tasks[3].candidates", "tasks[4].aspect"]
    task = await task_of(desk, "anna")
    for verdict in (Verdict.choice(0, 0), Verdict.choice(0, 2), Verdict.edit("x"), Verdict.skip("")):
        with pytest.raises(InvalidRequest):
            await desk.client.labelling.answer("shop", task.lease_id, verdict, labeller="anna")
    with pytest.raises(InvalidRequest):
        await desk.client.labelling.add_tasks("Shop", [pair(1)], import_id="i1")
    with pytest.raises(InvalidRequest):
        await desk.client.labelling.next_task("shop")
    with pytest.raises(UnknownProject):
        await desk.client.labelling.next_task("none", labeller="anna")


async def test_metrics_count_answers_and_open_tasks(desk: Desk) -> None:
    await desk.client.labelling.add_tasks("shop", [pair(1), pair(2)], import_id="i1")
    await choose(desk, await task_of(desk, "anna"), "anna")
    settling = asyncio.create_task(desk.desk.upkeep()[0])
    await asyncio.sleep(0.3)
    settling.cancel()
    value = desk.metrics.registry.get_sample_value
    assert value("rewardloop_labelling_open_tasks") == 1
    assert value("rewardloop_labelling_answers_total", {"kind": "choice", "outcome": "recorded"}) == 1
    assert value("rewardloop_feedback_events_total", {"kind": "choice", "outcome": "recorded"}) == 1
