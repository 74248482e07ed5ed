"""Labelling behind a door with callers: who a labeller is, and what each role is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from support.doors import CallersFile
from support.labelling_desks import desk_on, pair, signals_in

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, labelling_pb2, labelling_pb2_grpc, reward_pb2
from rewardloop_client import AsyncRewardloopClient, NotAllowed, UnknownLease, Verdict
from rewardloop_client.labelling.messages import new_task
from rewardloop_local.ports import free_port
from rewardloop_server.calls.errors import NoModel
from rewardloop_server.doors.call import Call
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.doors.settings import DoorSettings
from rewardloop_server.labelling.expect import Expectations
from rewardloop_server.labelling.labeller import Labeller
from rewardloop_server.labelling.queue import QueueRules
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.scoring.score_group import ScoredGroup


async def test_a_labeller_is_a_caller_and_sees_its_own_progress_alone(redis: Redis, tmp_path: Path) -> None:
    callers = CallersFile(tmp_path)
    roles = {"ops": "admin", "viewer": "view", "anna": "label", "bert": "label"}
    tokens = {name: callers.add(name, role) for name, role in roles.items()}
    metrics = ServerMetrics()
    entrance = Entrance(DoorSettings(callers=callers.path), metrics.registry, "test")
    server = entrance.server([RewardloopInterceptor(metrics, entrance.door)], 64 * 2**20)
    desk, _ = desk_on(redis, metrics)
    labelling_pb2_grpc.add_LabellingServiceServicer_to_server(desk.servicer, server)
    address = f"127.0.0.1:{free_port()}"
    entrance.open(server, address)
    await server.start()
    clients = {name: AsyncRewardloopClient(address, token=token, max_attempts=1) for name, token in tokens.items()}
    try:
        await clients["ops"].labelling.add_tasks("shop", [pair(i, overlap=2) for i in range(2)], import_id="i1")
        with pytest.raises(NotAllowed):
            await clients["anna"].labelling.add_tasks("shop", [pair(1)], import_id="i1")
        for name in ("anna", "bert"):
            labelling = clients[name].labelling
            task = (await labelling.next_task("shop")).task
            assert task is not None
            await labelling.answer("shop", task.lease_id, Verdict.choice(0, 1))
        # The same id with another caller is another labeller.
        task = (await clients["bert"].labelling.next_task("shop", labeller="anna")).task
        assert task is not None
        with pytest.raises(UnknownLease):
            await clients["anna"].labelling.answer("shop", task.lease_id, Verdict.choice(0, 1))
        (own,) = await clients["anna"].labelling.progress("shop")
        assert [(each.labeller, each.caller) for each in own.labellers] == [("anna", "anna")]
        for name in ("ops", "viewer"):
            (progress,) = await clients[name].labelling.progress()
            assert {(each.labeller, each.caller) for each in progress.labellers} == {
                *[("anna", "anna"), ("bert", "bert"), ("anna", "bert")]
            }
        assert len((await clients["viewer"].labelling.list_answers("shop")).answers) == 2
        with pytest.raises(NotAllowed):
            await clients["anna"].labelling.list_answers("shop")
        assert {(event.annotator_id, event.caller) for event in await signals_in(redis)} == {
            *[("anna", "anna"), ("bert", "bert")]
        }
        await clients["bert"].labelling.undo("shop")
        assert [event.annotator_id for event in await signals_in(redis)] == ["anna"]
        gone = await clients["ops"].labelling.retract_tasks("shop", "i1", answers=True)
        assert (gone.tasks, gone.answers) == (2, 1)
        assert await signals_in(redis) == []  # though another caller gave the answer
    finally:
        for client in clients.values():
            await client.close()
        await server.stop(None)


class _Model:
    """Scores by a number in the prompt, as the versions in ``digests`` in turn."""

    def __init__(self) -> None:
        self.digest = "d1"
        self.asked = 0
        self.is_warm = False

    async def score(self, request: reward_pb2.ScoreRequest, call: Call, **_: Any) -> ScoredGroup:
        if not self.is_warm:
            raise NoModel("no model is warm")
        self.asked += 1
        gap = float(request.prompt.text.removeprefix("p"))
        reply = reward_pb2.ScoreResponse(model_version=common_pb2.ModelVersion(version="1", digest=self.digest))
        return ScoredGroup(reply, np.array([[gap], [0.0]], np.float32))


async def test_tasks_come_by_what_the_live_model_expects_of_them(redis: Redis) -> None:
    desk, _ = desk_on(redis, ServerMetrics(), QueueRules(uniform_share=0.0))
    model = _Model()
    expectations = Expectations(desk.queue, model)  # type: ignore[arg-type]
    client_tasks = [pair(i) for i in (3, 0, 2, 1)]

    request = labelling_pb2.AddTasksRequest(project="shop", import_id="i1", tasks=map(new_task, client_tasks))
    await desk.servicer.AddTasks(request, None)  # type: ignore[arg-type]
    scoring = asyncio.create_task(expectations.run(every_s=0.01))
    await asyncio.sleep(0.1)
    assert (await desk.queue.figures("shop")).unscored == 4  # they wait for a model
    model.is_warm = True
    await asyncio.sleep(0.1)
    scoring.cancel()
    while await expectations.score_some("shop"):
        pass  # what a slow machine has not done yet
    base = keys.labelling_prefix("shop")
    found = await redis.zrevrange(base + "open", 0, -1, withscores=True)
    stored = [(await desk.queue.task("shop", task.decode()), information) for task, information in found]
    assert [(task.new.prompt.text, round(information, 3)) for task, information in stored if task] == [
        *[("p0", 0.25), ("p1", 0.197), ("p2", 0.105), ("p3", 0.045)]
    ]
    offered = (await desk.servicer.NextTask(labelling_pb2.NextTaskRequest(project="shop", labeller="anna"), None)).task  # type: ignore[arg-type]
    assert offered.prompt.text == "p0"
    lease = await desk.queue.lease("shop", offered.lease_id)
    assert lease is not None
    assert lease.information == pytest.approx(0.25)
    assert (lease.probability, lease.is_uniform) == (1.0, False)


async def test_the_most_informative_tasks_are_scored_again_by_a_new_version_but_not_all_the_time(redis: Redis) -> None:
    desk, _ = desk_on(redis, ServerMetrics())
    model = _Model()
    model.is_warm = True
    expectations = Expectations(desk.queue, model)  # type: ignore[arg-type]

    async def add(number: int) -> None:
        request = labelling_pb2.AddTasksRequest(project="shop", import_id="i1", tasks=[new_task(pair(number))])
        await desk.servicer.AddTasks(request, None)  # type: ignore[arg-type]
        while await expectations.score_some("shop"):
            pass

    for number in range(3):
        await add(number)
    assert model.asked == 3
    model.digest = "d2"
    await add(3)
    assert model.asked == 4  # the first version has just scored them
    await redis.hset(keys.labelling_prefix("shop") + "meta", "rescored_at reward", 0)
    await add(4)
    assert model.asked == 9  # the new task, and the four before it


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
async def test_the_probability_of_a_draw_is_how_often_it_is_drawn(redis: Redis, share: float) -> None:
    desk, _ = desk_on(redis, ServerMetrics(), QueueRules(uniform_share=share))

    tasks = [new_task(pair(i, overlap=100)) for i in range(5)]
    request = labelling_pb2.AddTasksRequest(project="shop", import_id="i1", tasks=tasks)
    await desk.servicer.AddTasks(request, None)  # type: ignore[arg-type]
    drawn: dict[str, list[float]] = {}
    draws = 100
    for i in range(draws):
        given = await desk.queue.next("shop", Labeller(f"person-{i}", ""))
        assert given.offered is not None
        lease = await desk.queue.lease("shop", given.offered.lease_id)
        assert lease is not None
        drawn.setdefault(lease.task_id, []).append(lease.probability)
    best = max(drawn, key=lambda task: drawn[task][0])
    expected = share / 5 + (1 - share)
    assert all(p == pytest.approx(expected) for p in drawn[best]) or share == 1.0
    spread = 4 * (expected * (1 - expected) / draws) ** 0.5  # four standard deviations
    assert len(drawn[best]) / draws == pytest.approx(expected, abs=spread + 1e-9) or share == 1.0
    assert len(drawn) == (1 if share == 0.0 else 5)
    assert sum(ps[0] for ps in drawn.values()) == pytest.approx(1.0)
