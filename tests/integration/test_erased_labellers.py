"""What erasing somebody who labels leaves behind, and that labelling goes on after it whatever was under way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis
from support.labelling_desks import Desk, labelling, pair, signals_in

from rewardloop.formats import keys
from rewardloop.formats.erasing.erasures import Erasure, Erasures, Kind, digest_of, new_key
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import policy_pb2
from rewardloop_client import LabellingTask, NewTask, RewardloopError, Verdict
from rewardloop_server.labelling import record
from rewardloop_trainer.erasure.shown_part import erase_shown

GONE = "anna.smith@shop.example"
REASON = "it is about my son Tom"
_BASE = keys.labelling_prefix("shop")


@pytest.fixture
async def desk(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(record, "_ABANDONED_MS", 0)
    async with labelling(redis) as made:
        await made.client.labelling.add_tasks("shop", [pair(i) for i in range(4)], import_id="i1")
        yield made


async def task_of(desk: Desk, who: str) -> LabellingTask:
    offer = await desk.client.labelling.next_task("shop", labeller=who)
    assert offer.task is not None, offer
    return offer.task


def is_private(task: LabellingTask) -> bool:
    return "078-05-1120" in str(task.prompt)


async def say(desk: Desk, who: str, verdict: object) -> LabellingTask:
    task = await task_of(desk, who)
    await desk.client.labelling.answer("shop", task.lease_id, verdict, labeller=who)  # type: ignore[arg-type]
    return task


def erase(redis_url: str, directory: Path, kind: Kind = "annotator", text: str = GONE) -> None:
    """Erase the person, or a generation, from what Redis keeps for labelling, as the trainer does."""
    name, secret = new_key()
    asked = Erasure("e1", kind, digest_of(secret, kind, text).hex(), name, None, time.time())
    with sync_redis.Redis.from_url(redis_url) as client:
        erase_shown(client, Erasures({name: secret}, [asked]), ModelStore(directory).reports)


async def texts_in(redis: Redis) -> bytes:
    """All fields and values of the project's hashes."""
    client: Any = redis
    found = [await client.hgetall(key) async for key in client.scan_iter(f"{_BASE}*", _type="hash")]
    return b"\n".join(part for each in found for field in each.items() for part in field)


async def test_neither_the_name_nor_a_reason_is_left_and_counts_stay(
    desk: Desk, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    await say(desk, GONE, Verdict.skip(REASON))
    await say(desk, "bob", Verdict.skip("unclear"))
    await say(desk, GONE, Verdict.choice(0, 1))
    assert GONE.encode() in await texts_in(redis)
    erase(redis_url, tmp_path)
    left = await texts_in(redis)
    assert GONE.encode() not in left
    assert REASON.encode() not in left
    (progress,) = await desk.client.labelling.progress("shop")
    assert dict(progress.skips) == {"unclear": 1}
    assert {(each.labeller, each.answers, each.skips) for each in progress.labellers} == {("", 1, 1), ("bob", 0, 1)}
    await task_of(desk, GONE)
    (progress,) = await desk.client.labelling.progress("shop")
    assert {each.labeller for each in progress.labellers} == {GONE, "bob"}


@pytest.mark.parametrize("verdict", [Verdict.skip(REASON), Verdict.choice(0, 1)], ids=["skip", "choice"])
async def test_an_erased_answer_can_be_undone(desk: Desk, redis_url: str, tmp_path: Path, verdict: object) -> None:
    task = await say(desk, GONE, verdict)
    erase(redis_url, tmp_path)
    undone = await desk.client.labelling.undo("shop", labeller=GONE)
    assert undone.task.task_id == task.task_id
    assert undone.verdict.WhichOneof("verdict") is None
    await desk.desk.recorder.settle_abandoned("shop")
    (progress,) = await desk.client.labelling.progress("shop")
    assert [(each.answers, each.skips) for each in progress.labellers] == [(0, 0)]
    assert dict(progress.skips) == {}


async def test_an_import_with_an_erased_skip_is_taken_back(
    desk: Desk, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    await say(desk, GONE, Verdict.skip(REASON))
    erase(redis_url, tmp_path)
    gone = await desk.client.labelling.retract_tasks("shop", "i1", answers=True)
    assert (gone.tasks, gone.answers) == (4, 1)
    await desk.desk.recorder.settle_abandoned("shop")
    assert await redis.zcard(_BASE + "pending") == 0


async def test_an_answer_that_is_erased_before_it_is_recorded_holds_nobody_up(
    desk: Desk, redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = []
    with monkeypatch.context() as patch:

        async def dies(*_: object) -> bool:
            raise RewardloopError("the server died")

        patch.setattr(record.Recorder, "_carry_out", dies)
        for who in (GONE, "bob"):
            task = await task_of(desk, who)
            leases.append(task.lease_id)
            with pytest.raises(RewardloopError):
                await desk.client.labelling.answer("shop", task.lease_id, Verdict.choice(0, 1), labeller=who)
    assert await redis.zcard(_BASE + "pending") == 2
    erase(redis_url, tmp_path)
    await desk.desk.recorder.settle_abandoned("shop")
    assert await redis.zcard(_BASE + "pending") == 0
    assert [event.annotator_id for event in await signals_in(redis)] == ["bob"]
    await desk.client.labelling.answer("shop", leases[0], Verdict.choice(0, 1), labeller=GONE)
    assert [event.annotator_id for event in await signals_in(redis)] == ["bob", GONE]


async def test_what_was_answered_about_an_erased_generation_is_gone(
    desk: Desk, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    generation = policy_pb2.Generation(generation_id="g1", prompt={"text": "How?"})
    for text in ("one", "two"):
        generation.candidates.add(text=text, token_count=1)
    await desk.generations.put(generation)
    task = NewTask(kinds=["edit"], generation_id="g1")
    await desk.client.labelling.add_tasks("shop", [task], import_id="i2")
    for who in ("bob", "carl", "dora", "emil", "fred"):
        found = await task_of(desk, who)
        verdict = Verdict.edit(f"better, says {who}") if "edit" in found.kinds else Verdict.choice(0, 1)
        await desk.client.labelling.answer("shop", found.lease_id, verdict, labeller=who, comment=f"{found.kinds[0]}!")
    erase(redis_url, tmp_path, "generation", "g1")
    left = await texts_in(redis)
    assert b"edit!" not in left
    assert b"better, says" not in left
    assert left.count(b"choice!") == 4


async def test_the_tasks_about_an_erased_generation_are_gone_and_others_go_on(
    desk: Desk, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    generation = policy_pb2.Generation(generation_id="g1", prompt={"text": "My number is 078-05-1120."})
    for text in ("I keep 078-05-1120.", "Do not say 078-05-1120."):
        generation.candidates.add(text=text, token_count=1)
    await desk.generations.put(generation)
    about = [
        NewTask(kinds=kinds, generation_id="g1", overlap=3) for kinds in (["edit"], ["choice"], ["choice", "edit"])
    ]
    await desk.client.labelling.add_tasks("shop", about, import_id="i2")
    tasks = {who: await task_of(desk, who) for who in ("bob", "carl", "dora", "emil", "fred", "gina", "hugo")}
    held = [who for who, task in tasks.items() if is_private(task)]
    said = Verdict.edit("not 078-05-1120") if "edit" in tasks[held[0]].kinds else Verdict.choice(0, 1)
    lease = tasks[held[0]].lease_id
    await desk.client.labelling.answer("shop", lease, said, labeller=held[0], comment="078-05-1120?")
    await desk.client.labelling.add_tasks("shop", [pair(i) for i in range(10, 30)], import_id="i3")
    assert b"078-05-1120" in await texts_in(redis)
    erase(redis_url, tmp_path, "generation", "g1")
    left = await texts_in(redis)
    assert b"078-05-1120" not in left
    assert b"g1" not in left
    (progress,) = await desk.client.labelling.progress("shop")
    assert progress.tasks == 24
    for who in held:
        assert not is_private(await task_of(desk, who))
    await desk.desk.recorder.settle_abandoned("shop")
    erase(redis_url, tmp_path, "generation", "g1")
    await desk.generations.put(generation)
    await desk.client.labelling.add_tasks("shop", about, import_id="i4")
    (progress,) = await desk.client.labelling.progress("shop")
    assert progress.tasks == 27
    assert {is_private(await task_of(desk, f"new-{i}")) for i in range(20)} == {True, False}
