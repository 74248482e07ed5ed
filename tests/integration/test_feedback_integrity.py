"""Who may say how much about what: forged and replayed signals, and too many of them, over real gRPC and Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.grpc_servers import Serve
from support.intakes import intake_of
from support.signals import choice
from support.statuses import failure, reason_of, retry_ms_of

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2, feedback_pb2_grpc, policy_pb2
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback import generation_keys
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.servicer import FeedbackServicer
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics

Event = feedback_pb2.FeedbackEvent
Record = Callable[[Event], Any]


@asynccontextmanager
async def feedback(
    serve: Serve, redis: Redis, metrics: ServerMetrics, caps: Caps | None = None, log: GenerationLog | None = None
) -> AsyncIterator[Any]:
    servicer = FeedbackServicer(
        intake_of(FeedbackStream(redis, 60, caps), log or GenerationLog(redis, 60), metrics),
        Limits(),
        metrics,
        max_events=1000,
    )
    async with serve((feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, servicer)) as channel:
        stub: Any = feedback_pb2_grpc.FeedbackServiceStub(channel)
        yield stub


def by(annotator: str, number: int) -> Event:
    event = choice(number)
    event.ClearField("arrival_time")
    event.annotator_id = annotator
    return event


def about(generation_id: str, event_id: str, annotator: str = "ann", **signal: Any) -> Event:
    signal = signal or {"choice": feedback_pb2.Choice(chosen=1, rejected=0)}
    return Event(event_id=event_id, generation_id=generation_id, annotator_id=annotator, **signal)


def thumb(response: int, up: bool) -> dict[str, feedback_pb2.Thumb]:
    return {"thumb": feedback_pb2.Thumb(response=response, up=up)}


async def logged(log: GenerationLog, candidates: int = 2) -> str:
    """Id of a new generation."""
    generation = policy_pb2.Generation(
        generation_id=await log.new_id(),
        prompt=common_pb2.Prompt(text="hi"),
        candidates=[policy_pb2.Candidate(text=f"answer {i}") for i in range(candidates)],
    )
    await log.put(generation)
    return generation.generation_id


async def record(stub: Any, event: Event) -> str:
    """The reason it is refused for; empty: recorded."""
    try:
        await stub.Record(feedback_pb2.RecordRequest(event=event))
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    return ""


async def test_signals_of_one_annotator_are_bounded_and_others_are_not(
    serve: Serve, redis: Redis, metrics: ServerMetrics
) -> None:
    async with feedback(serve, redis, metrics, Caps(per_day=3)) as stub:
        assert [await record(stub, by("ann", i)) for i in range(5)] == ["", "", "", *["TOO_MANY_SIGNALS"] * 2]
        assert [await record(stub, by("bob", i)) for i in range(10, 12)] == ["", ""]
        assert [await record(stub, by("", i)) for i in range(20, 26)] == [""] * 6
        # What was recorded is still known again, and costs nothing.
        assert (await stub.Record(feedback_pb2.RecordRequest(event=by("ann", 0)))).duplicate
        error = await failure(stub.Record(feedback_pb2.RecordRequest(event=by("ann", 9))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 0 < retry_ms_of(error) <= 86_400_000 + 1
    assert await redis.xlen(keys.FEEDBACK_STREAM) == 11
    refused = metrics.registry.get_sample_value("rewardloop_rejected_total", {"reason": "TOO_MANY_SIGNALS"})
    assert refused == 3
    for key in await redis.keys(f"{keys.FEEDBACK_COUNT}*"):
        assert 0 < await redis.ttl(key) <= 2 * 86_400


async def test_bound_holds_within_a_batch_and_over_replicas(serve: Serve, redis: Redis, metrics: ServerMetrics) -> None:
    caps = Caps(per_minute=1_000, per_day=20)
    async with feedback(serve, redis, metrics, caps) as one, feedback(serve, redis, metrics, caps) as two:
        batches = [
            stub.RecordBatch(feedback_pb2.RecordBatchRequest(events=[by("ann", 100 * n + i) for i in range(15)]))
            for n, stub in enumerate((one, two, one, two))
        ]
        replies = await asyncio.gather(*batches)
    outcomes = [item.WhichOneof("outcome") for reply in replies for item in reply.items]
    assert (outcomes.count("result"), outcomes.count("error")) == (20, 40)
    assert await redis.xlen(keys.FEEDBACK_STREAM) == 20


async def test_same_signal_about_a_generation_counts_once(serve: Serve, redis: Redis, metrics: ServerMetrics) -> None:
    log = GenerationLog(redis, 60)
    generation = await logged(log)
    async with feedback(serve, redis, metrics, Caps(per_generation=3)) as stub:
        assert await record(stub, about(generation, "1")) == ""
        error = await failure(stub.Record(feedback_pb2.RecordRequest(event=about(generation, "2"))))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.ALREADY_EXISTS, "REPLAYED_SIGNAL")
        # The same event again is no replay; nor is what somebody else says, or something else.
        assert (await stub.Record(feedback_pb2.RecordRequest(event=about(generation, "1")))).duplicate
        assert await record(stub, about(generation, "3", "bob")) == ""
        assert await record(stub, about(generation, "4", **thumb(0, True))) == ""
        assert await record(stub, about(generation, "5", **thumb(0, False))) == ""
        # A fourth is one too many, whatever it says.
        assert await record(stub, about(generation, "6", **thumb(1, False))) == "REPLAYED_SIGNAL"
        assert await record(stub, about(await logged(log), "7")) == ""
    assert await redis.xlen(keys.FEEDBACK_STREAM) == 5


async def test_replays_at_once_count_once(serve: Serve, redis: Redis, metrics: ServerMetrics) -> None:
    generation = await logged(GenerationLog(redis, 60))
    async with feedback(serve, redis, metrics, Caps(per_generation=64)) as stub:
        reasons = await asyncio.gather(*(record(stub, about(generation, f"{i}")) for i in range(50)))
    assert sorted(reasons) == ["", *["REPLAYED_SIGNAL"] * 49]
    assert await redis.xlen(keys.FEEDBACK_STREAM) == 1


async def test_forged_generation_is_unknown_though_it_is_in_the_log(
    serve: Serve, redis: Redis, metrics: ServerMetrics
) -> None:
    signed = GenerationLog(redis, 60, GenerationKeys(redis), metrics.forged_generations_total.inc)
    forged = await logged(GenerationLog(redis, 60))  # nobody signed this id
    real = await logged(signed)
    number, _, tag = real.partition(".")
    moved = f"{secrets.token_hex(16)}.{tag}"
    async with feedback(serve, redis, metrics, log=signed) as stub:
        assert await record(stub, about(real, "real")) == ""
        for event_id, generation in enumerate((forged, moved, number, f"{number}.", f"{real}x", ".", "keys")):
            error = await failure(
                stub.Record(feedback_pb2.RecordRequest(event=about(generation, f"forged {event_id}")))
            )
            assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_GENERATION")
    assert metrics.registry.get_sample_value("rewardloop_forged_generations_total") == 7
    assert await redis.xlen(keys.FEEDBACK_STREAM) == 1


async def test_processes_without_a_key_file_agree_on_one_in_redis(redis: Redis) -> None:
    several = [GenerationKeys(redis) for _ in range(5)]
    ids = await asyncio.gather(*(each.new_id() for each in several))
    assert await redis.llen(keys.GENERATION_KEYS) == 1
    assert all([await each.is_ours(generation) for each in several for generation in ids])


async def test_rotated_key_is_used_at_once_and_the_one_before_stays_good(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, worker = GenerationKeys(redis), GenerationKeys(redis)
    old = await worker.new_id()
    assert await server.is_ours(old)
    await redis.lpush(keys.GENERATION_KEYS, secrets.token_hex(32))
    monkeypatch.setattr(generation_keys, "_FRESH_S", 0.0)
    new = await worker.new_id()
    monkeypatch.setattr(generation_keys, "_FRESH_S", 1e9)  # the server learns of it by the unknown signature
    monkeypatch.setattr(generation_keys, "_RETRY_S", 0.0)
    assert await server.is_ours(new)
    assert await server.is_ours(old)
    await redis.lpush(keys.GENERATION_KEYS, secrets.token_hex(32))
    assert not await server.is_ours("0.x")  # looks again
    assert await server.is_ours(new)
    assert not await server.is_ours(old)


async def test_keys_may_be_in_a_file(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "generation.keys"
    path.write_text(f"{secrets.token_hex(32)}\n")
    one, two = GenerationKeys(redis, str(path)), GenerationKeys(redis, str(path))
    assert await two.is_ours(await one.new_id())
    assert not await redis.exists(keys.GENERATION_KEYS)
    for wrong in ("", "not hex", "abcd"):
        path.write_text(wrong)
        with pytest.raises(ValueError):  # noqa: PT011 - the kinds of text are of bytes.fromhex
            await GenerationKeys(redis, str(path)).new_id()
