"""What one caller with a token can do to another one's signals, over a real door and a real Redis."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import redis as blocking_redis
from redis.asyncio import Redis
from support.doors import CallersFile
from support.feedback_services import feedback_for

from rewardloop.formats import keys
from rewardloop.formats.signals import signal_key
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_client import EventIdConflict, Feedback, InvalidRequest, RecordResult, TooManySignals, UnknownGeneration
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.doors.callers import PRESENT, Credential
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.generate.relay import PolicyRelay
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.data.pools.pools import PoolLimits, Pools, RoundRange
from rewardloop_trainer.metrics import TrainerMetrics

Event = feedback_pb2.FeedbackEvent


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect_redis(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def callers(tmp_path: Path) -> CallersFile:
    return CallersFile(tmp_path)


def order(event_id: str, chosen: int = 0, annotator: str = "") -> Event:
    """A choice of a shop's customer."""
    return Feedback.choice(
        event_id=event_id,
        prompt=f"How do I return {event_id}?",
        responses=["Send it back.", "You cannot."],
        chosen=chosen,
        rejected=1 - chosen,
        annotator_id=annotator,
    )


def junk(event_id: str) -> Event:
    return Feedback.thumb(event_id=event_id, prompt="x", responses=["y"], up=False)


async def recorded(redis: Redis) -> list[Event]:
    raw: Any = await redis.xrange(keys.FEEDBACK_STREAM)
    return [Event.FromString(fields[keys.EVENT_FIELD.encode()]) for _, fields in raw]


def archived(redis_url: str, archive: Path) -> list[Event]:
    """What the ledger has of the stream once it is drained."""
    stop = threading.Event()
    with blocking_redis.Redis.from_url(redis_url) as client:
        consumer = Consumer(client, Ledger(archive), TrainerMetrics(), ConsumerSettings(flush_age_s=0.05, block_ms=20))
        thread = threading.Thread(target=consumer.run, args=(stop,))
        thread.start()
        while not stop.wait(0.02):
            if consumer.drained():
                stop.set()
        thread.join()
    return [row.event for row in Ledger(archive, writable=False).scan()]


async def test_junk_that_is_sent_first_under_anothers_event_id_displaces_nothing(
    redis: Redis, redis_url: str, callers: CallersFile, tmp_path: Path
) -> None:
    async with feedback_for(redis, callers, "shop", "mallory") as (shop, mallory):
        assert not (await mallory.record(junk("order-1001"))).duplicate
        assert not (await shop.record(order("order-1001"))).duplicate
        # Sent again by either, it is known, and other content under the id is an error of its own.
        assert (await shop.record(order("order-1001"))).duplicate
        assert (await mallory.record(junk("order-1001"))).duplicate
        with pytest.raises(EventIdConflict) as refused:
            await shop.record(order("order-1001", chosen=1))
        assert (refused.value.code.name, refused.value.reason) == ("ALREADY_EXISTS", "EVENT_ID_CONFLICT")
        again, new, conflict = await shop.record_batch(
            [order("order-1001"), order("order-1002"), order("order-1002", chosen=1)]
        )
        assert isinstance(again, RecordResult)
        assert isinstance(new, RecordResult)
        assert (again.duplicate, new.duplicate) == (True, False)
        assert isinstance(conflict, EventIdConflict)
    told = [("mallory", "order-1001"), ("shop", "order-1001"), ("shop", "order-1002")]
    assert [(event.caller, event.event_id) for event in await recorded(redis)] == told
    events = archived(redis_url, tmp_path / "ledger")
    assert [(event.caller, event.event_id) for event in events] == told
    # A round learns from both callers' signals.
    ledger = Ledger(tmp_path / "ledger", writable=False)
    assert ledger.last_stream_id is not None
    with Pools(None, PoolLimits(heldout_share=0.0, few=0)) as pools:
        pools.prepare(ledger, RoundRange("reward", "", ledger.last_stream_id))
        assert set(pools.fresh("reward")) == {signal_key(event) for event in events}


async def test_the_ledger_has_a_callers_event_id_once_whatever_the_stream_has(redis_url: str, tmp_path: Path) -> None:
    with blocking_redis.Redis.from_url(redis_url) as client:
        for caller in ("shop", "mallory", "", "shop", "mallory", ""):
            event = order("order-1")
            event.caller = caller
            client.xadd(keys.FEEDBACK_STREAM, {keys.EVENT_FIELD: event.SerializeToString(), keys.ID_FIELD: "order-1"})
    assert [event.caller for event in archived(redis_url, tmp_path / "ledger")] == ["shop", "mallory", ""]
    assert [event.caller for event in archived(redis_url, tmp_path / "ledger")] == ["shop", "mallory", ""]


async def test_no_caller_speaks_in_anothers_name(redis: Redis, callers: CallersFile) -> None:
    async with feedback_for(redis, callers, "mallory") as (mallory,):
        forged = order("order-1")
        forged.caller = "shop"
        with pytest.raises(InvalidRequest, match="caller: set by the server"):
            await mallory.record(forged)
        await mallory.record(order("shop\x1forder-1"))
    (event,) = await recorded(redis)
    assert event.caller == "mallory"
    assert signal_key(event) == "mallory\x1fshop\x1forder-1"


async def test_invented_annotators_do_not_pass_the_bound_of_a_caller(redis: Redis, callers: CallersFile) -> None:
    caps = Caps(per_day=5, caller_per_day=50)
    async with feedback_for(redis, callers, "shop", "mallory", caps=caps) as (shop, mallory):
        invented = [order(f"i{i}", annotator=f"invented-{i % 400}") for i in range(400)]
        outcomes = await mallory.record_batch(invented)
        refused = [outcome for outcome in outcomes if isinstance(outcome, TooManySignals)]
        assert (len(outcomes) - len(refused), len(refused)) == (50, 350)
        assert {"this caller in a day"} == {str(each).partition(" of ")[2] for each in refused}
        assert all(each.retry_after_s for each in refused)
        # What was recorded is still known, and the others are served.
        assert (await mallory.record(invented[0])).duplicate
        assert not (await shop.record(order("s1", annotator="invented-1"))).duplicate
    assert len(await recorded(redis)) == 51


async def test_no_caller_uses_up_the_bound_of_anothers_annotator(redis: Redis, callers: CallersFile) -> None:
    generation = policy_pb2.Generation(
        generation_id="g", prompt=common_pb2.Prompt(text="q"), candidates=[policy_pb2.Candidate(text="a")]
    )
    await GenerationLog(redis, 60).put(generation)
    about = {"generation_id": "g", "annotator_id": "user-17"}
    async with feedback_for(redis, callers, "shop", "mallory", caps=Caps(per_day=3, per_generation=1)) as clients:
        shop, mallory = clients
        await mallory.record(Feedback.thumb(up=False, **about))
        for i in range(2):
            await mallory.record(order(f"m{i}", annotator="user-17"))
        with pytest.raises(TooManySignals):
            await mallory.record(order("m9", annotator="user-17"))
        await shop.record(Feedback.thumb(up=False, **about))
        await shop.record(order("s1", annotator="user-17"))


async def test_feedback_may_have_to_name_a_generation_of_its_caller(redis: Redis, callers: CallersFile) -> None:
    log = GenerationLog(redis, 60)
    for owner in ("shop", "mallory", ""):
        generation = policy_pb2.Generation(
            generation_id=f"of {owner}",
            prompt=common_pb2.Prompt(text="q"),
            candidates=[policy_pb2.Candidate(text="a"), policy_pb2.Candidate(text="b")],
        )
        await log.put(generation)
        if owner:
            await log.note_caller(generation.generation_id, owner)
    async with feedback_for(redis, callers, "shop", "mallory", needs_generation=True) as (shop, mallory):
        with pytest.raises(InvalidRequest, match="generation_id"):
            await mallory.record(junk("j"))
        for named in ("of shop", "of ", "nowhere"):
            with pytest.raises(UnknownGeneration):
                await mallory.record(Feedback.thumb(generation_id=named, up=False))
        await shop.record(Feedback.choice(generation_id="of shop", chosen=0, rejected=1))
        await mallory.record(Feedback.choice(generation_id="of mallory", chosen=0, rejected=1))
    assert [event.generation_id for event in await recorded(redis)] == ["of shop", "of mallory"]
    # Without the setting any known generation may be named.
    async with feedback_for(redis, callers, "eve") as (eve,):
        await eve.record(Feedback.choice(generation_id="of shop", chosen=0, rejected=1))


async def test_an_answer_belongs_to_the_caller_that_asked_for_it(redis: Redis) -> None:
    class Link:
        def channel(self) -> grpc.aio.Channel:
            return grpc.aio.insecure_channel("127.0.0.1:1")

        async def forward(self, *_: object) -> policy_pb2.GenerateResponse:
            return policy_pb2.GenerateResponse(generation_id="g")

    log = GenerationLog(redis, 60, is_by_caller=True)
    await log.put(policy_pb2.Generation(generation_id="g"))
    present = PRESENT.set(Credential("shop", "key", frozenset()))
    await PolicyRelay(cast(Any, Link()), None, log).Generate(policy_pb2.GenerateRequest(), cast(Any, None))
    PRESENT.reset(present)
    assert 0 < await redis.ttl(keys.GENERATION_CALLER + "g") <= 60
    assert set(await log.get(["g"], "shop")) == {"g"}
    assert set(await log.get(["g"], "mallory")) == set()
