"""What a labeller is told of the tasks that are left, over real gRPC and a real redis-server, and by the fake."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from redis.asyncio import Redis
from support.labelling_desks import labelling, pair

from rewardloop_client import LabellerProgress, NewTask, Offer, Verdict
from rewardloop_client.fake import FakeRewardloop
from rewardloop_server.labelling.queue import QueueRules

# Calls a method of the labelling client, blocking or not.
Ask: TypeAlias = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["server", "fake"])
async def ask(request: pytest.FixtureRequest, redis: Redis) -> AsyncIterator[Ask]:
    async def call(method: str, *args: Any, **more: Any) -> Any:
        reply = getattr(client, method)(*args, **more)
        return await reply if inspect.isawaitable(reply) else reply

    if request.param == "fake":
        client: Any = FakeRewardloop().labelling
        yield call
        return
    async with labelling(redis, QueueRules(uniform_share=0.0)) as desk:
        client = desk.client.labelling
        yield call


async def add(ask: Ask, *tasks: NewTask) -> None:
    await ask("add_tasks", "shop", tasks, import_id="i")


async def next_of(ask: Ask, who: str) -> Offer:
    found: Offer = await ask("next_task", "shop", labeller=who)
    return found


async def give(ask: Ask, who: str, verdict: Any) -> None:
    """Answer the task that the labeller has."""
    offer = await next_of(ask, who)
    assert offer.task is not None
    await ask("answer", "shop", offer.task.lease_id, verdict, labeller=who)


async def progress_of(ask: Ask, who: str) -> LabellerProgress:
    (project,) = await ask("progress", "shop", labeller=who)
    return next(each for each in project.labellers if each.labeller == who)


async def test_an_answer_that_is_taken_back_is_counted_among_what_is_left(ask: Ask) -> None:
    await add(ask, *(pair(i) for i in range(5)))
    await give(ask, "anna", Verdict.tie())
    after = await next_of(ask, "anna")
    assert (after.answered, after.left + 1) == (1, 4)
    await ask("undo", "shop", labeller="anna")
    offer = await next_of(ask, "anna")
    assert (offer.answered, offer.left + 1) == (0, 5)


async def test_a_task_that_a_labeller_has_is_left_for_this_labeller(ask: Ask) -> None:
    await add(ask, pair(0), pair(1))
    await give(ask, "anna", Verdict.tie())
    await next_of(ask, "anna")
    assert (await progress_of(ask, "anna")).left == 1
    (project,) = await ask("progress", "shop", labeller="anna")
    assert project.open == 0


async def test_a_labeller_is_told_whether_others_have_the_tasks_or_wait_for_them(ask: Ask) -> None:
    await add(ask, pair(0, overlap=2), pair(1, overlap=2))
    await give(ask, "anna", Verdict.skip("unclear"))
    await give(ask, "anna", Verdict.tie())
    offer = await next_of(ask, "anna")
    assert (offer.no_task, offer.own_left, offer.taken) == ("all_taken", 2, 0)
    for who in ("ben", "cleo"):
        for _ in range(2 if who == "ben" else 1):
            await give(ask, who, Verdict.tie())
    offer = await next_of(ask, "anna")
    assert (offer.no_task, offer.own_left, offer.taken) == ("all_done", 0, 0)


async def test_a_task_that_only_others_have_is_said_to_be_taken(ask: Ask) -> None:
    await add(ask, pair(0))
    await next_of(ask, "ben")
    offer = await next_of(ask, "anna")
    assert (offer.no_task, offer.own_left, offer.taken) == ("all_taken", 0, 1)
