"""The FeedbackService over real gRPC and a real redis-server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.grpc_servers import Serve
from support.intakes import intake_of
from support.signals import choice
from support.statuses import failure, fields_of, reason_of

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2, feedback_pb2_grpc, policy_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.servicer import FeedbackServicer
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics

Event = feedback_pb2.FeedbackEvent


def sent(number: int) -> Event:
    """A choice as a caller sends it."""
    event = choice(number)
    event.ClearField("arrival_time")
    return event


def about(generation_id: str, event_id: str = "e", chosen: int = 1, rejected: int = 0) -> Event:
    signal = feedback_pb2.Choice(chosen=chosen, rejected=rejected)
    return Event(event_id=event_id, generation_id=generation_id, choice=signal)


@asynccontextmanager
async def feedback(serve: Serve, redis: Redis, metrics: ServerMetrics, max_events: int = 1000) -> AsyncIterator[Any]:
    servicer = FeedbackServicer(
        intake_of(FeedbackStream(redis, 60), GenerationLog(redis, 60), metrics),
        Limits(),
        metrics,
        max_events=max_events,
    )
    async with serve((feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, servicer)) as channel:
        stub: Any = feedback_pb2_grpc.FeedbackServiceStub(channel)
        yield stub


@pytest.fixture
async def stub(serve: Serve, redis: Redis, metrics: ServerMetrics) -> AsyncIterator[Any]:
    async with feedback(serve, redis, metrics) as stub:
        yield stub


async def recorded(redis: Redis) -> list[Event]:
    raw: Any = await redis.xrange(keys.FEEDBACK_STREAM)
    return [Event.FromString(fields[keys.EVENT_FIELD.encode()]) for _, fields in raw]


def request(event: Event) -> feedback_pb2.RecordRequest:
    return feedback_pb2.RecordRequest(event=event)


async def test_signal_is_recorded_with_its_arrival_time(stub: Any, redis: Redis, metrics: ServerMetrics) -> None:
    before = time.time()
    reply = await stub.Record(request(sent(1)))
    assert not reply.duplicate
    (event,) = await recorded(redis)
    assert before <= event.arrival_time.ToNanoseconds() / 1e9 <= time.time()
    event.ClearField("arrival_time")
    assert event == sent(1)
    assert await redis.xrange(keys.FEEDBACK_STREAM, reply.stream_id, reply.stream_id)
    labels = {"kind": "choice", "outcome": "recorded"}
    assert metrics.registry.get_sample_value("rewardloop_feedback_events_total", labels) == 1


async def test_duplicate_is_said_and_not_appended(stub: Any, redis: Redis) -> None:
    await stub.Record(request(sent(1)))
    reply = await stub.Record(request(sent(1)))
    assert (reply.duplicate, reply.stream_id) == (True, "")
    assert len(await recorded(redis)) == 1


async def test_hundred_callers_with_one_event_id_record_it_once(stub: Any, redis: Redis) -> None:
    replies = await asyncio.gather(*(stub.Record(request(sent(1))) for _ in range(100)))
    assert sum(not reply.duplicate for reply in replies) == 1
    assert len(await recorded(redis)) == 1


async def test_generation_is_filled_in(stub: Any, redis: Redis) -> None:
    generation = policy_pb2.Generation(
        generation_id="g1",
        prompt=common_pb2.Prompt(text="hi"),
        candidates=[policy_pb2.Candidate(text="a"), policy_pb2.Candidate(text="b")],
        policy_version=common_pb2.ModelVersion(version="3", digest="d"),
    )
    await GenerationLog(redis, ttl_s=60).put(generation)
    await stub.Record(request(about("g1")))
    (event,) = await recorded(redis)
    assert event.prompt.text == "hi"
    assert list(event.responses) == ["a", "b"]
    assert event.policy_version.version == "3"
    assert event.generation_id == "g1"

    error = await failure(stub.Record(request(about("g1", "e2", chosen=2))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fields_of(error) == ["event.choice.chosen"]
    assert len(await recorded(redis)) == 1


async def test_each_response_names_its_version_where_two_answered(stub: Any, redis: Redis) -> None:
    four = common_pb2.ModelVersion(version="4", digest="e")
    generation = policy_pb2.Generation(
        generation_id="g1",
        prompt=common_pb2.Prompt(text="hi"),
        candidates=[policy_pb2.Candidate(text="a", policy_version=four), policy_pb2.Candidate(text="b")],
        policy_version=common_pb2.ModelVersion(version="3", digest="d"),
    )
    await GenerationLog(redis, ttl_s=60).put(generation)
    await stub.Record(request(about("g1")))
    (event,) = await recorded(redis)
    assert list(event.response_versions) == ["4", "3"]


async def test_a_signal_carries_how_its_responses_came_to_be_shown(stub: Any, redis: Redis) -> None:
    chosen = policy_pb2.Chosen(
        selection=policy_pb2.SELECTION_UNIFORM, sampled=4, random_share=1.0, is_random=True, set_probability=1 / 6
    )
    candidates = [
        policy_pb2.Candidate(text="a", log_probability=-2.5, token_count=3, score=0.5),
        policy_pb2.Candidate(text="b", log_probability=-4.0, token_count=6, score=-1.0),
    ]
    generation = policy_pb2.Generation(
        generation_id="g1",
        prompt=common_pb2.Prompt(text="hi"),
        candidates=candidates,
        policy_version=common_pb2.ModelVersion(version="3", digest="d"),
        temperature=0.7,
        top_p=1.0,
        show_probabilities=[0.5, 0.5],
        chosen=chosen,
    )
    await GenerationLog(redis, ttl_s=60).put(generation)
    asked = request(about("g1"))
    asked.event.display_order.extend([1, 0])
    await stub.Record(asked)
    (event,) = await recorded(redis)
    assert event.shown == feedback_pb2.Shown(
        chosen=chosen,
        show_probabilities=[0.5, 0.5],
        temperature=0.7,
        top_p=1.0,
        log_probabilities=[-2.5, -4.0],
        token_counts=[3, 6],
        scores=[0.5, -1.0],
    )
    assert list(event.display_order) == [1, 0]


@pytest.mark.parametrize("order", [[0, 0], [2], [-1, 0]])
async def test_a_display_order_names_each_response_at_most_once(stub: Any, order: list[int]) -> None:
    wrong = sent(1)
    wrong.display_order.extend(order)
    error = await failure(stub.Record(request(wrong)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(fields_of(error)) == {"event.display_order"}


async def test_unknown_generation_is_not_found(stub: Any, redis: Redis) -> None:
    error = await failure(stub.Record(request(about("nowhere"))))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(error) == "UNKNOWN_GENERATION"
    assert await recorded(redis) == []


async def test_bad_items_of_a_batch_fail_alone(stub: Any, redis: Redis, metrics: ServerMetrics) -> None:
    nan = sent(2)
    nan.rating.CopyFrom(feedback_pb2.Rating(value=math.nan, minimum=0, maximum=1))
    batch = [sent(1), nan, about("nowhere"), sent(3), sent(1)]
    reply = await stub.RecordBatch(feedback_pb2.RecordBatchRequest(events=batch))
    outcomes = [item.WhichOneof("outcome") for item in reply.items]
    assert outcomes == ["result", "error", "error", "result", "result"]
    assert fields_of(reply.items[1].error) == ["events[1].rating.value"]
    assert reason_of(reply.items[2].error) == "UNKNOWN_GENERATION"
    assert reply.items[4].result.duplicate
    assert [event.event_id for event in await recorded(redis)] == ["e1", "e3"]
    rejected = metrics.registry.get_sample_value("rewardloop_rejected_total", {"reason": "INVALID_REQUEST"})
    assert rejected == 1


async def test_nan_is_refused_and_the_service_goes_on(stub: Any) -> None:
    bad = sent(1)
    bad.rating.CopyFrom(feedback_pb2.Rating(value=math.nan, minimum=0, maximum=1))
    error = await failure(stub.Record(request(bad)))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert fields_of(error) == ["event.rating.value"]
    assert not (await stub.Record(request(sent(1)))).duplicate


async def test_request_without_an_event_is_refused(stub: Any) -> None:
    assert fields_of(await failure(stub.Record(feedback_pb2.RecordRequest()))) == ["event"]


async def test_number_of_events_is_bounded(serve: Serve, redis: Redis, metrics: ServerMetrics) -> None:
    async with feedback(serve, redis, metrics, max_events=3) as stub:
        for count in (0, 4):
            batch = feedback_pb2.RecordBatchRequest(events=[sent(i) for i in range(count)])
            assert fields_of(await failure(stub.RecordBatch(batch))) == ["events"]
        reply = await stub.RecordBatch(feedback_pb2.RecordBatchRequest(events=[sent(i) for i in range(3)]))
        assert len(reply.items) == 3


async def test_text_that_is_not_utf8_is_an_invalid_argument(serve: Serve, redis: Redis, metrics: ServerMetrics) -> None:
    data = request(sent(1)).SerializeToString().replace(b"question", b"\xff\xfe\xfd\xfcions")
    servicer = FeedbackServicer(
        intake_of(FeedbackStream(redis, 60), GenerationLog(redis, 60), metrics), Limits(), metrics, max_events=9
    )
    async with serve((feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, servicer)) as channel:
        error = await failure(channel.unary_unary("/rewardloop.v1.FeedbackService/Record")(data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "INVALID_REQUEST"
    assert await recorded(redis) == []


async def test_nothing_acknowledged_is_lost_when_redis_is_killed(
    fresh_redis: EmbeddedRedis, serve: Serve, metrics: ServerMetrics
) -> None:
    redis = connect_redis(fresh_redis.url)
    async with feedback(serve, redis, metrics) as stub:
        first = await asyncio.gather(*(stub.Record(request(sent(i))) for i in range(50)))
        fresh_redis.kill()
        error = await failure(stub.Record(request(sent(50))))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
        batch = feedback_pb2.RecordBatchRequest(events=[sent(51), sent(52)])
        assert reason_of(await failure(stub.RecordBatch(batch))) == "REDIS_UNAVAILABLE"
        fresh_redis.start()
        again = await asyncio.gather(*(stub.Record(request(sent(i))) for i in range(51)))
        present = [event.event_id for event in await recorded(redis)]
    assert not any(reply.duplicate for reply in first)
    assert [reply.duplicate for reply in again] == [True] * 50 + [False]
    assert sorted(present) == sorted(f"e{i}" for i in range(51))
    failed = {"kind": "choice", "outcome": "failed"}
    assert metrics.registry.get_sample_value("rewardloop_feedback_events_total", failed) == 3
    await redis.aclose()
