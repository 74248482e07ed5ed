"""Many labellers at once, on two servers, with deaths in the middle: no task is given to more than its overlap, no
labeller has one twice, and no answer that was acknowledged is lost or counted twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from support.labelling_desks import desk_on, pair, signals_in

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2, labelling_pb2
from rewardloop_client import RewardloopError as ClientError
from rewardloop_client.labelling.messages import new_task
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import (
    LeaseAnswered,
    NothingToUndo,
    RedisUnavailable,
    RewardloopError,
    TaskTaken,
    UnknownLease,
)
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.labelling.desk import LabellingDesk
from rewardloop_server.labelling.labeller import Labeller
from rewardloop_server.labelling.queue import QueueRules
from rewardloop_server.observe.metrics import ServerMetrics

SHOP = "shop"
_PATIENCE_S = 120.0  # on a busy machine Redis may be slow to answer, which is no failure here
BASE = keys.labelling_prefix(SHOP)
NO_CONTEXT = None


def patient(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = patient(redis_url)
    yield client
    await client.aclose()


@dataclass
class World:
    """What the labellers know: the answers that were acknowledged, by lease, and who was given what in which order."""

    said: dict[str, tuple[str, str]] = field(default_factory=dict)  # lease -> labeller, task
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)  # lease -> task

    def shown(self, task: labelling_pb2.Task) -> None:
        """The candidates of a lease never change their order."""
        assert self.orders.setdefault(task.lease_id, tuple(task.candidates)) == tuple(task.candidates)
        self.given[task.lease_id] = task.task_id


async def add(desk: LabellingDesk, tasks: int, overlap: int) -> None:
    new = [new_task(pair(i, overlap=1 + i % overlap)) for i in range(tasks)]
    request = labelling_pb2.AddTasksRequest(project=SHOP, import_id="i1", tasks=new)
    reply = await desk.servicer.AddTasks(request, NO_CONTEXT)  # type: ignore[arg-type]
    assert all(item.HasField("result") for item in reply.items)


async def next_task(desk: LabellingDesk, who: str) -> labelling_pb2.Task | None:
    request = labelling_pb2.NextTaskRequest(project=SHOP, labeller=who)
    reply = await desk.servicer.NextTask(request, NO_CONTEXT)  # type: ignore[arg-type]
    return reply.task if reply.HasField("task") else None


def answer_to(task: labelling_pb2.Task, who: str, *, skip: bool = False) -> labelling_pb2.AnswerRequest:
    best = list(task.candidates).index("first")
    verdict = labelling_pb2.Verdict(choice=feedback_pb2.Choice(chosen=best, rejected=1 - best))
    if skip:
        verdict = labelling_pb2.Verdict(skip=labelling_pb2.Skip(reason="unclear"))
    source = feedback_pb2.SOURCE_LLM_JUDGE if who.startswith("machine") else feedback_pb2.SOURCE_HUMAN
    return labelling_pb2.AnswerRequest(
        project=SHOP, labeller=who, lease_id=task.lease_id, verdict=verdict, source=source
    )


async def send(desk: LabellingDesk, request: labelling_pb2.AnswerRequest) -> None:
    await desk.servicer.Answer(request, NO_CONTEXT)  # type: ignore[arg-type]


async def check_places(redis: Redis) -> None:
    """Each task has as many places taken as leases and answers take, and at most its overlap."""
    for key in await redis.keys(BASE + "task:*"):
        task = key.decode().removeprefix(BASE + "task:")
        state = {name.decode(): value.decode() for name, value in (await redis.hgetall(key)).items()}
        takers = []
        for lease in await redis.smembers(BASE + "of:" + task):
            about = {
                n.decode(): v.decode("utf-8", "replace")
                for n, v in (await redis.hgetall(BASE + f"lease:{lease.decode()}")).items()
            }
            if about["state"] in ("held", "pending", "answered", "undoing") and not about["repeat"]:
                if about["state"] == "answered" and about["kind"] == "skip":
                    continue
                takers.append(about["who"])
        assert len(takers) == len(set(takers)), "a labeller has a task twice"
        assert int(state.get("taken", 0)) == len(takers) <= int(state["wanted"])
        is_open = await redis.zscore(BASE + "open", task) is not None
        assert is_open == (len(takers) < int(state["wanted"]) and "closed" not in state)


async def check_signals(redis: Redis, world: World) -> None:
    """What was acknowledged is in the stream, once, and nothing else is."""
    events = await signals_in(redis)
    assert Counter(event.import_id.split(":")[1] for event in events) == Counter(list(world.said))
    by_task: dict[str, list[str]] = defaultdict(list)
    for event in events:
        by_task[event.task.task_id].append(event.annotator_id)
        assert (event.choice.chosen, event.choice.rejected) == (0, 1)
    wanted = {task: int(await redis.hget(BASE + f"task:{task}", "wanted") or 0) for task in by_task}
    assert all(len(who) == len(set(who)) <= wanted[task] for task, who in by_task.items())


async def end_leases(redis: Redis) -> None:
    for lease in await redis.zrange(BASE + "leases", 0, -1):
        await redis.zadd(BASE + "leases", {lease: 1})


async def labeller(desks: list[LabellingDesk], who: str, world: World, chance: random.Random) -> None:
    """Label until nothing is left: on either server, with closed tabs, calls cut off, and answers sent twice."""
    while True:
        desk = chance.choice(desks)
        task = await next_task(desk, who)
        if task is None:
            return
        world.shown(task)
        if chance.random() < 0.2:  # closes the tab, and comes back
            again = await next_task(chance.choice(desks), who)
            assert again is not None
            assert again.lease_id == task.lease_id
            world.shown(again)
        request = answer_to(task, who)
        if chance.random() < 0.3:  # is cut off in the middle
            call = asyncio.create_task(send(desk, request))
            await asyncio.sleep(chance.random() * 0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        for _ in range(1 + (chance.random() < 0.2)):
            await send(chance.choice(desks), request)
        world.said[task.lease_id] = (who, task.task_id)
        if chance.random() < 0.1:
            request_ = labelling_pb2.UndoRequest(project=SHOP, labeller=who)
            undone = await desk.servicer.Undo(request_, NO_CONTEXT)  # type: ignore[arg-type]
            assert undone.task.task_id == task.task_id
            assert list(undone.task.candidates) == list(task.candidates)
            del world.said[task.lease_id]


@pytest.mark.parametrize("seed", range(3))
async def test_two_labellers_and_one_machine_never_get_a_task_beyond_its_overlap(redis: Redis, seed: int) -> None:
    desks = [desk_on(redis, ServerMetrics(), QueueRules(uniform_share=0.5))[0] for _ in range(2)]
    await add(desks[0], 60, overlap=3)
    world, chance = World(), random.Random(seed)
    crowd = ["anna", "bert", "machine-1"]
    work = [labeller(desks, who, world, random.Random(chance.random())) for who in crowd]
    await asyncio.gather(*work)
    await check_places(redis)
    await check_signals(redis, world)
    wanted = sum(1 + i % 3 for i in range(60))
    assert len(world.said) == wanted
    by_task = Counter(task for _, task in world.said.values())
    assert Counter(by_task.values()) == {1: 20, 2: 20, 3: 20}


async def test_a_crowd_answers_every_task_as_often_as_is_wanted(redis: Redis) -> None:
    desks = [desk_on(redis, ServerMetrics(), QueueRules(uniform_share=0.2))[0] for _ in range(2)]
    await add(desks[0], 60, overlap=4)
    world = World()
    await asyncio.gather(*(labeller(desks, f"person-{i}", world, random.Random(i)) for i in range(12)))
    await check_places(redis)
    await check_signals(redis, world)
    assert len(world.said) == sum(1 + i % 4 for i in range(60))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["next", "answer", "skip", "undo", "end leases", "late", "die answering", "die undoing", "end"]
        ),
        st.sampled_from(["anna", "bert", "machine-1"]),
    ),
    max_size=40,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, tasks=st.integers(1, 4), overlap=st.integers(1, 3))
def test_places_and_signals_agree_after_any_steps(
    redis_url: str, steps: list[tuple[str, str]], tasks: int, overlap: int
) -> None:
    asyncio.run(_steps(redis_url, steps, tasks, overlap))


async def _steps(redis_url: str, steps: list[tuple[str, str]], tasks: int, overlap: int) -> None:
    redis = patient(redis_url)
    await redis.flushall()
    desk, _ = desk_on(redis, ServerMetrics(), QueueRules(uniform_share=0.5, most_skips=2))
    await add(desk, tasks, overlap)
    world = World()
    last: dict[str, labelling_pb2.Task] = {}
    try:
        for step, who in steps:
            await _step(step, who, desk, redis, world, last)
            await check_places(redis)
        await _settle(desk, redis)
        await check_places(redis)
        known = await signals_in(redis)
        said = {event.import_id.split(":")[1] for event in known}
        assert set(world.said) <= said  # a death after the note may have added one that nobody was told of
        answered = {
            lease.decode().removeprefix(BASE + "lease:")
            for lease in await redis.keys(BASE + "lease:*")
            if await redis.hmget(lease, "state", "kind") == [b"answered", b"choice"]
        }
        assert answered == said
        assert len(known) == len(said)
    finally:
        await redis.aclose()


async def _step(
    step: str, who: str, desk: LabellingDesk, redis: Redis, world: World, last: dict[str, labelling_pb2.Task]
) -> None:
    match step:
        case "next":
            if (task := await next_task(desk, who)) is not None:
                world.shown(task)
                last[who] = task
        case "answer" | "skip" | "late":
            if (task := last.get(who)) is None:
                return
            if step == "late":
                await end_leases(redis)
            try:
                await send(desk, answer_to(task, who, skip=step == "skip"))
            except (TaskTaken, LeaseAnswered, UnknownLease):
                return
            else:
                about = await redis.hget(BASE + f"lease:{task.lease_id}", "kind")
                if about == b"choice":
                    world.said[task.lease_id] = (who, task.task_id)
        case "undo":
            request = labelling_pb2.UndoRequest(project=SHOP, labeller=who)
            try:
                undone = await desk.servicer.Undo(request, NO_CONTEXT)  # type: ignore[arg-type]
            except (NothingToUndo, TaskTaken):
                return
            last[who] = undone.task
            for lease, (person, task_id) in list(world.said.items()):
                if person == who and task_id == undone.task.task_id:
                    del world.said[lease]
        case "end leases":
            await end_leases(redis)
        case "die answering":
            await _die_answering(desk, who, last)
        case "die undoing":
            begun = await desk.queue.take_back(SHOP, Labeller(who, ""))
            if isinstance(begun, tuple):
                world.said.pop(begun[0], None)
        case "end":
            await _settle(desk, redis)


async def _die_answering(desk: LabellingDesk, who: str, last: dict[str, labelling_pb2.Task]) -> None:
    """The server notes an answer, and dies before anything else."""
    if (task := last.get(who)) is None:
        return
    recorder = desk.recorder
    carried_out = recorder._carry_out

    async def die(project: str, lease_id: str) -> bool:
        raise RedisUnavailable("the process is gone")

    recorder._carry_out = die  # type: ignore[method-assign]
    try:
        await send(desk, answer_to(task, who))
    except RewardloopError:
        pass  # the labeller is not told that it is recorded
    finally:
        recorder._carry_out = carried_out  # type: ignore[method-assign]


async def _settle(desk: LabellingDesk, redis: Redis) -> None:
    for lease in await redis.zrange(BASE + "pending", 0, -1):
        await redis.zadd(BASE + "pending", {lease: 1})
    await desk.recorder.settle_abandoned(SHOP)
    assert await redis.zcard(BASE + "pending") == 0


async def test_nothing_is_lost_when_redis_is_killed_in_the_middle(fresh_redis: EmbeddedRedis) -> None:
    redis = connect_redis(fresh_redis.url)
    desk, _ = desk_on(redis, ServerMetrics(), QueueRules(uniform_share=0.2))
    await add(desk, 40, overlap=2)
    world = World()

    async def label(who: str) -> None:
        while True:
            try:
                task = await next_task(desk, who)
                if task is None:
                    return
                world.shown(task)
            except RedisUnavailable:
                await asyncio.sleep(0.05)
                continue
            while True:
                try:
                    await send(desk, answer_to(task, who))
                except RedisUnavailable:
                    await asyncio.sleep(0.05)
                except (TaskTaken, UnknownLease) as error:
                    raise AssertionError("an answer was lost") from error
                else:
                    world.said[task.lease_id] = (who, task.task_id)
                    break

    async def kill() -> None:
        for _ in range(3):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(fresh_redis.kill)
            await asyncio.to_thread(fresh_redis.start)

    await asyncio.gather(kill(), *(label(f"person-{i}") for i in range(6)))
    await redis.aclose()
    async with patient(fresh_redis.url) as looking:
        await check_places(looking)
        await check_signals(looking, world)
    assert len(world.said) == 60


def test_errors_of_the_client_are_those_of_the_server() -> None:
    """Each refusal of labelling has a class of its own in the client."""
    reasons = {kind.reason for kind in ClientError.__subclasses__() for kind in (kind, *kind.__subclasses__())}
    assert {"TASK_TAKEN", "TASK_RETRACTED", "NOTHING_TO_UNDO", "UNKNOWN_LEASE", "LEASE_ANSWERED"} <= reasons
