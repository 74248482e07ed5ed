"""What operators see: a trainer's board goes through Redis to the service, and decisions come back to the trainer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as blocking
from redis.asyncio import Redis
from support.grpc_servers import Serve
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.formats.signals import person_of
from rewardloop.formats.store import DataRange, Manifest, ModelStore
from rewardloop.formats.storing.active import Active
from rewardloop.v1 import operations_pb2 as pb
from rewardloop.v1 import operations_pb2_grpc
from rewardloop_server.calls.replication import Replication
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.operations.build import operations_servicer
from rewardloop_trainer.reports.parts import Sample, Side
from rewardloop_trainer.rounds.bulletin.board import Board
from rewardloop_trainer.rounds.bulletin.mutes import muted_people
from rewardloop_trainer.rounds.bulletin.publishing import KEPT_ROUNDS, keep_published, published_rounds
from rewardloop_trainer.rounds.trainer_state import RoundState
from rewardloop_trainer.vocabulary import Reason

NOW = RoundState(3, "training", "", "9-0", 300, 256, 1, parent="1", started_at=1_700_000_000.0)


class Pointers:
    """The pointer of "reward" and nothing else."""

    def __init__(self, active: Active | None) -> None:
        self.active = active

    async def read(self, model: str) -> Active | None:
        return self.active if model == "reward" else None


class Host:
    active = None


@pytest.fixture
def client(redis_url: str) -> blocking.Redis:
    """The trainer's connection to the same Redis."""
    return blocking.Redis.from_url(redis_url)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    found = ModelStore(tmp_path / "store")
    data = DataRange("1-0", "9-0", 2, (1_000.0, 1_010.0))
    found.publish(Manifest("reward", data=data), lambda directory: None)
    return found


@pytest.fixture
def pointers() -> Pointers:
    return Pointers(Active("1", ("0",), reason="tested", changed_at="2026-01-01T00:00:00+00:00", is_held=True))


@pytest.fixture
async def stub(
    serve: Serve, redis: Redis, metrics: ServerMetrics, store: ModelStore, pointers: Pointers
) -> AsyncIterator[Any]:
    parts = {"reward": Host()}, store, pointers, redis, metrics, Replication(redis)
    servicer = operations_servicer(*parts, has_policy=False)
    async with serve((operations_pb2_grpc.add_OperationsServiceServicer_to_server, servicer)) as channel:
        yield operations_pb2_grpc.OperationsServiceStub(channel)


def connection(client: blocking.Redis) -> Any:
    """The client without its types, which are unions over every protocol version and decoding."""
    return client


def publish(client: blocking.Redis, board: Board) -> None:
    """Publish the board once."""
    stop = threading.Event()
    stop.set()
    keep_published(client, board, stop)


def told(board: Board, number: int = 3, outcome: str = "refused") -> None:
    """Tell the board of a round from its beginning to its end."""
    now = replace(NOW, number=number, started_at=NOW.started_at + number)
    board.reached("reward", now)
    for step in range(1, 1_001):
        board.stepped("reward", number, step, 1_000, {"loss": 1 / step, "gradient_norm": math.nan})
    if outcome == "refused":
        sample = Sample(
            "How?", [Side("people prefer", "y" * 5_000), Side("over", "b", {"score": 0.5})], signal="shop\x1fe7"
        )
        board.refused("reward", number, [Reason("accuracy", "it is worse")], [sample])
    figures = {"gate_needed": 12.0, "gate_gain": -0.1, "bad": math.nan}
    board.ended("reward", replace(now, phase="exported", metrics=figures), outcome)  # type: ignore[arg-type]


async def test_round_is_shown_with_curves_reasons_and_examples(stub: Any, client: blocking.Redis) -> None:
    board = Board()
    board.lead("t1")
    told(board)
    publish(client, board)
    (short,) = (await stub.ListRounds(pb.ListRoundsRequest(model="reward"))).rounds
    assert (short.outcome, short.reasons[0].rule, short.reasons[0].text) == ("refused", "accuracy", "it is worse")
    assert dict(short.figures) == {"gate_needed": 12.0, "gate_gain": -0.1}
    assert not short.curves
    assert not short.examples
    whole = (await stub.GetRound(pb.GetRoundRequest(model="reward", trainer_id="t1", number=3))).round
    (loss,) = whole.curves
    assert loss.name == "loss"
    assert 50 <= len(loss.steps) <= 200
    assert list(loss.steps) == sorted(set(loss.steps))
    assert loss.steps[-1] > 980
    (example,) = whole.examples
    assert (example.caller, example.event_id) == ("shop", "e7")
    assert len(example.sides[0].text) == 2_000
    assert example.sides[1].score == 0.5
    with pytest.raises(Exception, match="no such round"):
        await stub.GetRound(pb.GetRoundRequest(model="reward", trainer_id="t1", number=4))


async def test_lists_and_status_read_no_curves_and_no_examples(stub: Any, client: blocking.Redis) -> None:
    board = Board()
    board.lead("t1")
    told(board)
    publish(client, board)
    (field,) = connection(client).hkeys(keys.ROUNDS)
    head, details = (connection(client).hget(name, field) for name in (keys.ROUNDS, keys.ROUND_DETAILS))
    assert len(head) < 400 < 3_000 < len(details)
    client.hset(keys.ROUND_DETAILS, field, b"\xff no round")  # whoever reads it gets nothing of it
    assert (await stub.ListRounds(pb.ListRoundsRequest())).rounds[0].outcome == "refused"
    found = await stub.GetStatus(pb.GetStatusRequest())
    assert [each.model for each in found.models] == ["reward"]
    whole = (await stub.GetRound(pb.GetRoundRequest(model="reward", trainer_id="t1", number=3))).round
    assert (whole.outcome, len(whole.curves)) == ("refused", 0)


async def test_round_that_an_earlier_release_published_whole_is_shown(stub: Any, client: blocking.Redis) -> None:
    old = pb.Round(model="reward", trainer_id="t1", number=2, curves=[pb.Curve(name="loss", steps=[1], values=[2.0])])
    client.hset(keys.ROUNDS, keys.round_field("reward", "t1", 2), old.SerializeToString())
    (short,) = (await stub.ListRounds(pb.ListRoundsRequest())).rounds
    assert not short.curves
    assert (await stub.GetRound(pb.GetRoundRequest(model="reward", trainer_id="t1", number=2))).round == old
    assert list(published_rounds(client).values()) == [old]


async def test_oldest_rounds_are_dropped(client: blocking.Redis, stub: Any) -> None:
    board = Board()
    board.lead("t1")
    for number in range(1, KEPT_ROUNDS + 6):
        told(board, number, "promoted")
        publish(client, board)
    numbers = [each.number for each in published_rounds(client).values()]
    assert sorted(numbers) == list(range(6, KEPT_ROUNDS + 6))
    assert connection(client).hlen(keys.ROUND_DETAILS) == KEPT_ROUNDS
    rounds = (await stub.ListRounds(pb.ListRoundsRequest(page_size=3))).rounds
    assert [each.number for each in rounds] == [KEPT_ROUNDS + 5, KEPT_ROUNDS + 4, KEPT_ROUNDS + 3]


async def test_restarted_trainer_goes_on_with_the_curve_of_its_round(client: blocking.Redis, stub: Any) -> None:
    first = Board()
    first.lead("t1")
    first.reached("reward", NOW)
    for step in range(1, 11):
        first.stepped("reward", 3, step, 20, {"loss": 1.0})
    publish(client, first)
    second = Board()
    second.remember(published_rounds(client).values())
    second.lead("t1")
    second.reached("reward", NOW)
    for step in range(8, 21):
        second.stepped("reward", 3, step, 20, {"loss": 2.0})
    publish(client, second)
    (loss,) = (await stub.GetRound(pb.GetRoundRequest(model="reward", trainer_id="t1", number=3))).round.curves
    assert list(loss.steps) == list(range(1, 21))
    assert list(loss.values) == [1.0] * 7 + [2.0] * 13


async def test_what_redis_did_not_take_is_published_later(client: blocking.Redis, redis_url: str) -> None:
    board = Board()
    board.lead("t1")
    told(board)
    away = blocking.Redis(port=1)
    publish(away, board)
    assert published_rounds(client) == {}
    publish(client, board)
    assert [each.outcome for each in published_rounds(client).values()] == ["refused"]


async def test_status_says_what_a_model_waits_for(
    stub: Any, client: blocking.Redis, redis: Redis, pointers: Pointers, store: ModelStore
) -> None:
    async def waiting() -> str:
        found = await stub.GetStatus(pb.GetStatusRequest())
        return str(next(each.waiting_for for each in found.models if each.model == "reward"))

    assert "None has reported in the last minute" in await waiting()
    board = Board()
    board.lead("t1")
    board.counted("reward", new=219, least=256, unread=0, interval_s=3_600, ended_at=0)
    publish(client, board)
    assert "A rollback holds it" in await waiting()
    pointers.active = Active("1")
    assert await waiting() == "reward: 37 more comparisons."
    board.counted("reward", new=256, least=256, unread=0, interval_s=3_600, ended_at=time.time() - 60)
    publish(client, board)
    assert await waiting() == "reward: its turn. A round starts next."
    board.reached("reward", NOW)
    board.paused("reward", "not reachable, trying again: the server", time.time() + 5)
    publish(client, board)
    assert await waiting() == "reward: its round, which trains. It pauses: not reachable, trying again: the server."
    told(board)
    board.counted("reward", new=1, least=256, unread=0, interval_s=7_200, ended_at=time.time())
    publish(client, board)
    said = await waiting()
    assert said.startswith("reward: 255 more comparisons, or 2 hours, whichever comes first.")
    assert said.endswith("Its last gate lacked 12 held-out prompts with an opinion to decide.")


async def test_status_has_versions_freshness_queue_and_alerts(
    stub: Any, redis: Redis, store: ModelStore, metrics: ServerMetrics
) -> None:
    digest = store.manifest("reward", "1").digest
    await redis.set(keys.FIRST_SERVED + digest, "1065.0")
    old_ms = int((time.time() - 400) * 1000)
    await redis.xadd(keys.FEEDBACK_STREAM, {"event": b"x"}, id=f"{old_ms}-0")
    await redis.xadd(keys.DEAD_LETTERS, {"event": b"x", "reason": "why"})
    metrics.durable("memory")
    found = await stub.GetStatus(pb.GetStatusRequest())
    reward = found.models[0]
    assert (reward.active_version, list(reward.previous_versions), reward.promotions_held) == ("1", ["0"], True)
    assert reward.signal_to_live_s == 60.0
    assert (found.queue.stream_length, found.queue.dead_letters) == (1, 1)
    assert {alert.name for alert in found.alerts} == {
        *("RewardloopNoWarmModel", "RewardloopRedisNotDurable", "RewardloopStreamLags", "RewardloopDeadLetters"),
        *("RewardloopTrainerNotLeading", "RewardloopPromotionHeld"),
    }
    assert found.alerts[0].severity == "page"


async def test_mute_is_read_by_the_trainer_and_taken_back(stub: Any, client: blocking.Redis) -> None:
    event = choice(1)
    event.caller, event.annotator_id = "shop", "user-17"
    asked = pb.SetMutedRequest(caller="shop", annotator_id="user-17", muted=True, reason="a shared account")
    await stub.SetMuted(asked)
    assert muted_people(client) == (person_of(event),)
    (person,) = (await stub.ListPeople(pb.ListPeopleRequest())).crowd.people
    assert (person.caller, person.annotator_id, person.mute.reason) == ("shop", "user-17", "a shared account")
    assert person.mute.HasField("decide_time")
    asked.muted = False
    await stub.SetMuted(asked)
    assert muted_people(client) == ()
    with pytest.raises(Exception, match="annotator_id"):
        await stub.SetMuted(pb.SetMutedRequest(muted=True))


async def test_dead_letter_is_put_back_or_dropped_once(stub: Any, redis: Redis) -> None:
    event = choice(7)
    whole = await redis.xadd(keys.DEAD_LETTERS, {"event": event.SerializeToString(), "reason": "the disk was full"})
    empty = await redis.xadd(keys.DEAD_LETTERS, {"event": b"", "reason": "it had no event"})
    found = await stub.ListDeadLetters(pb.ListDeadLettersRequest())
    assert (found.total, [each.event_id for each in found.letters]) == (2, ["e7", ""])
    assert "good answer 7" in found.letters[0].content
    place = (await stub.RequeueDeadLetter(pb.RequeueDeadLetterRequest(letter_id=whole.decode()))).stream_id
    ((stream_id, fields),) = await redis.xrange(keys.FEEDBACK_STREAM)
    assert (stream_id.decode(), fields[b"event"], fields[b"id"]) == (place, event.SerializeToString(), b"e7")
    for letter, text in ((whole, "no such dead letter"), (empty, "no event")):
        with pytest.raises(Exception, match=text):
            await stub.RequeueDeadLetter(pb.RequeueDeadLetterRequest(letter_id=letter.decode()))
    await stub.DropDeadLetter(pb.DropDeadLetterRequest(letter_id=empty.decode()))
    for letter_id in (empty.decode(), "*", ""):
        with pytest.raises(Exception, match="dead letter"):
            await stub.DropDeadLetter(pb.DropDeadLetterRequest(letter_id=letter_id))


async def test_report_is_listed_and_read(stub: Any, store: ModelStore) -> None:
    assert not (await stub.ListReports(pb.ListReportsRequest())).reports
    report_id = store.reports.publish("audit", "An audit", "Nothing stands out.", {"alpha": 0.4}, "<h1>é</h1>")
    (about,) = (await stub.ListReports(pb.ListReportsRequest())).reports
    assert (about.report_id, about.kind, about.title, dict(about.figures)) == (
        report_id,
        "audit",
        "An audit",
        {"alpha": 0.4},
    )
    assert (await stub.GetReport(pb.GetReportRequest(report_id=report_id))).page == "<h1>é</h1>"
    another = report_id[:-1] + ("1" if report_id.endswith("0") else "0")
    for bad in ("", "../reward/1/manifest", another):
        with pytest.raises(Exception, match="no such report"):
            await stub.GetReport(pb.GetReportRequest(report_id=bad))
    assert store.models() == ["reward"]
