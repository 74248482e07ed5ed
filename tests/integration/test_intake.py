"""Signals while Redis is away, silent, full or back: the intake with and without a spool, on a real Redis."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.intakes import signals as as_taken
from support.signals import choice
from support.tcp_proxy import TcpProxy, Toxic

from rewardloop.formats import keys
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.errors import RedisUnavailable, StoreFull
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import fill_in
from rewardloop_server.feedback.spool import Spool
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics

Event = feedback_pb2.FeedbackEvent


@asynccontextmanager
async def intake(
    url: str, metrics: ServerMetrics, directory: Path | None = None, max_bytes: int = 2**20, drains: bool = True
) -> AsyncIterator[Intake]:
    redis = connect_redis(url)
    made = Intake(
        FeedbackStream(redis, ttl_s=60),
        GenerationLog(redis, ttl_s=60),
        functools.partial(fill_in, limits=Limits()),
        metrics,
        Spool(directory, segment_bytes=2_000) if directory else None,
        max_bytes,
    )
    await made.open()
    draining = asyncio.create_task(made.drain()) if directory and drains else None
    yield made
    if draining is not None:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
    await made.close()
    await redis.aclose()


async def recorded(url: str, stream: str = keys.FEEDBACK_STREAM) -> list[str]:
    redis = connect_redis(url)
    raw: Any = await redis.xrange(stream)
    await redis.aclose()
    return [Event.FromString(fields[keys.EVENT_FIELD.encode()]).event_id for _, fields in raw]


async def until(holds: Callable[[], bool], patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def waiting(metrics: ServerMetrics) -> float:
    return metrics.registry.get_sample_value("rewardloop_spool_events") or 0.0


async def test_spooled_signals_reach_the_stream_in_order_and_once(
    fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path
) -> None:
    async with intake(fresh_redis.url, metrics, tmp_path / "spool") as signals:
        await signals.append(as_taken(choice(0)))
        fresh_redis.kill()
        for i in range(1, 150):
            (place,) = await signals.append(as_taken(choice(i)))
            assert (place.stream_id, place.is_duplicate) == ("", False)
        await signals.append(as_taken(choice(149), choice(150)))  # sent again, as a caller does whose answer got lost
        assert waiting(metrics) == 151
        assert (metrics.registry.get_sample_value("rewardloop_spool_oldest_seconds") or 0) > 0
        assert (metrics.registry.get_sample_value("rewardloop_spool_bytes") or 0) > 1000
        assert await signals.is_reachable()
        fresh_redis.start()
        await until(lambda: waiting(metrics) == 0)
        (place,) = await signals.append(as_taken(choice(151)))
        assert place.stream_id
        assert await recorded(fresh_redis.url) == [f"e{i}" for i in range(152)]
    assert list((tmp_path / "spool").glob("*.spool")) == []


async def test_concurrent_callers_share_syncs(
    fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = Spool.write
    monkeypatch.setattr(Spool, "write", lambda self, payloads: (writes.append(len(payloads)), write(self, payloads))[1])
    fresh_redis.kill()
    async with intake(fresh_redis.url, metrics, tmp_path / "spool", drains=False) as signals:
        await asyncio.gather(*(signals.append(as_taken(choice(i))) for i in range(300)))
        assert sum(writes) == 300
        assert len(writes) < 150
    fresh_redis.start()
    async with intake(fresh_redis.url, metrics, tmp_path / "spool"):
        await until(lambda: waiting(metrics) == 0)
    assert sorted(await recorded(fresh_redis.url)) == sorted(f"e{i}" for i in range(300))


async def test_crash_between_the_stream_and_the_spool_doubles_nothing(
    fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_redis.kill()
    async with intake(fresh_redis.url, metrics, tmp_path / "spool", drains=False) as signals:
        for i in range(250):
            await signals.append(as_taken(choice(i)))
    fresh_redis.start()

    def crash(self: Spool, payloads: Any) -> None:
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "drop", crash)
        async with intake(fresh_redis.url, metrics, tmp_path / "spool", drains=False) as signals:
            with pytest.raises(RuntimeError, match="ends here"):
                await signals._drain_some()
    assert len(await recorded(fresh_redis.url)) >= 1
    async with intake(fresh_redis.url, metrics, tmp_path / "spool"):
        await until(lambda: waiting(metrics) == 0)
    assert await recorded(fresh_redis.url) == [f"e{i}" for i in range(250)]


async def test_spool_is_bounded(fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path) -> None:
    fresh_redis.kill()
    taken = 0
    async with intake(fresh_redis.url, metrics, tmp_path / "spool", max_bytes=3_000) as signals:
        refusal = None
        while refusal is None:
            try:
                await signals.append(as_taken(choice(taken)))
                taken += 1
            except StoreFull as error:
                refusal = error
        assert refusal.retry_after_ms
        assert 10 < taken < 50
        fresh_redis.start()
        await until(lambda: waiting(metrics) == 0)
    assert await recorded(fresh_redis.url) == [f"e{i}" for i in range(taken)]


async def test_signal_about_a_generation_is_filled_in_when_redis_is_back(
    fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path
) -> None:
    redis = connect_redis(fresh_redis.url)
    answers = [policy_pb2.Candidate(text="a"), policy_pb2.Candidate(text="b")]
    prompt = common_pb2.Prompt(text="hi")
    await GenerationLog(redis, 60).put(policy_pb2.Generation(generation_id="g", prompt=prompt, candidates=answers))
    async with intake(fresh_redis.url, metrics, tmp_path / "spool") as signals:
        fresh_redis.kill()
        assert await signals.generations({"g"}) is None
        chosen = feedback_pb2.Choice(chosen=1, rejected=0)
        await signals.append(as_taken(Event(event_id="known", generation_id="g", choice=chosen)))
        await signals.append(as_taken(Event(event_id="unknown", generation_id="nowhere", choice=chosen)))
        await signals.append(as_taken(choice(7)))
        fresh_redis.start()
        await until(lambda: waiting(metrics) == 0)
    assert await recorded(fresh_redis.url) == ["known", "e7"]
    assert await recorded(fresh_redis.url, keys.DEAD_LETTERS) == ["unknown"]
    entries: Any = await redis.xrange(keys.FEEDBACK_STREAM)
    await redis.aclose()
    assert list(Event.FromString(entries[0][1][b"event"]).responses) == ["a", "b"]


async def test_silent_redis_holds_up_one_call_and_no_other(fresh_redis: EmbeddedRedis, metrics: ServerMetrics) -> None:
    with TcpProxy(fresh_redis.port) as proxy:
        async with intake(f"redis://127.0.0.1:{proxy.port}/0", metrics) as signals:
            await signals.append(as_taken(choice(0)))
            proxy.toxic = Toxic(swallow=True)
            started = time.monotonic()
            with pytest.raises(RedisUnavailable):
                await signals.append(as_taken(choice(1)))
            assert time.monotonic() - started < 10  # its own bound is 2 s
            for _ in range(1000):
                with pytest.raises(RedisUnavailable):
                    await signals.append(as_taken(choice(1)))
            with pytest.raises(RedisUnavailable):
                await signals.generations({"g"})
            assert time.monotonic() - started < 20
            assert not await signals.is_reachable()
            proxy.heal()
            assert await signals.is_reachable()
            assert (await signals.append(as_taken(choice(1))))[0].stream_id


async def test_full_redis_is_a_typed_refusal_or_spooled(
    fresh_redis: EmbeddedRedis, metrics: ServerMetrics, tmp_path: Path
) -> None:
    redis = connect_redis(fresh_redis.url)
    async with intake(fresh_redis.url, metrics) as signals:
        await redis.config_set("maxmemory", "100kb")
        with pytest.raises(StoreFull) as refusal:
            await signals.append(as_taken(choice(0)))
        assert refusal.value.retry_after_ms
    async with intake(fresh_redis.url, metrics, tmp_path / "spool") as signals:
        for i in range(5):
            await signals.append(as_taken(choice(i)))
        assert waiting(metrics) == 5
        await redis.config_set("maxmemory", "0")
        await until(lambda: waiting(metrics) == 0)
    await redis.aclose()
    assert await recorded(fresh_redis.url) == [f"e{i}" for i in range(5)]
