"""An import that is taken back leaves the ledger and the pools as they were, and can be recorded again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis
from support.doors import CallersFile
from support.feedback_services import feedback_for
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_client import InvalidRequest, RecordResult
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.retraction import Retraction, retraction_in
from rewardloop_trainer.data.pools.pools import PoolLimits, RoundRange
from rewardloop_trainer.data.replay import POOLS, Replay, load_replay
from rewardloop_trainer.metrics import TrainerMetrics


def _event(number: int, import_id: str = "") -> feedback_pb2.FeedbackEvent:
    event = choice(number, prompts=1000)
    event.ClearField("arrival_time")
    event.import_id = import_id
    return event


def _state(archive: Path) -> tuple[object, ...]:
    """Everything that a reader sees of a ledger, but for how its rows are spread over segments."""
    ledger = Ledger(archive, writable=False)
    rows = list(ledger.scan())
    last = ledger.last_stream_id
    return (
        [(row.stream_id, row.event.SerializeToString(deterministic=True)) for row in rows],
        *(ledger.row_count, last, ledger.event_ids(), ledger.signal_keys(), ledger.arrivals()),
        *(ledger.rows_after(row.stream_id) for row in rows[::7]),
    )


def _append(ledger: Ledger, *events: feedback_pb2.FeedbackEvent, first: int) -> None:
    rows = []
    for place, event in enumerate(events, start=first):
        event.arrival_time.FromMilliseconds(1_700_000_000_000 + place)
        rows.append(Recorded(f"{place}-0", event))
    ledger.append(rows)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_ledger_is_as_it_was_before_the_import(tmp_path: Path, compacted: bool) -> None:
    ledger = Ledger(tmp_path / "a")
    _append(ledger, *(_event(i) for i in range(50)), first=1)
    _append(ledger, *(_event(i, "other") for i in range(50, 60)), first=51)
    before = _state(tmp_path / "a")
    _append(ledger, *(_event(i, "mine") for i in range(100, 180)), first=61)
    mixed = [*(_event(i, "mine") for i in range(180, 190)), *(_event(i) for i in range(200, 210))]
    _append(ledger, *mixed, first=141)
    only = Ledger(tmp_path / "b")
    _append(only, *(_event(i) for i in range(50)), first=1)
    _append(only, *(_event(i, "other") for i in range(50, 60)), first=51)
    if compacted:
        assert ledger.compact(segments=2) is not None
    assert len(ledger.imported("mine")) == 90
    assert ledger.retract("mine", "somebody else") == 0
    assert ledger.retract("mine") == 90
    assert ledger.retractions == 2  # counted before and after
    assert ledger.retract("mine") == 0
    _append(only, *(_event(i) for i in range(200, 210)), first=151)
    assert _state(tmp_path / "a") == _state(tmp_path / "b")
    assert _state(tmp_path / "a")[0][:60] == before[0]  # type: ignore[index]
    reopened = Ledger(tmp_path / "a")
    assert (reopened.row_count, reopened.imported("mine")) == (70, [])


def test_only_segments_since_a_place_are_read_for_what_is_taken_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for first in (1, 100, 200):
        _append(ledger, *(_event(i, "mine") for i in range(first, first + 3)), first=first)
    whole, since = ledger.imported("mine"), ledger.imported("mine", "", "101-0")
    assert (len(whole), since) == (9, whole[3:])
    assert ledger.retract("mine", "", "201-0") == 3
    assert ledger.imported("mine") == whole[:6]


@pytest.mark.parametrize(("age", "since"), [(b"60", "0-0"), (None, ""), (b"-1", ""), (b"x", "")])
def test_age_of_what_is_taken_back_bounds_the_search_with_a_day_for_clocks(age: bytes | None, since: str) -> None:
    fields = {b"retraction": b"mine", b"caller": b"shop"} | ({} if age is None else {b"age_s": age})
    found = retraction_in(f"{86_460_000 if since else 5}-3", fields)
    assert found == Retraction("mine", "shop", since)


async def test_what_clocks_say_is_not_there_is_searched_for_everywhere(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    ledger = Ledger(tmp_path)
    _append(ledger, *(_event(i, "mine") for i in range(3)), first=1)
    _append(ledger, _event(9), first=1_700_000_000_000)
    fields: dict[Any, Any] = {"retraction": "mine", "caller": "", "age_s": "1"}
    await redis.xadd(keys.FEEDBACK_STREAM, fields)
    with _consuming(redis_url, tmp_path) as consumer:
        await _drained(consumer, redis)
    assert Ledger(tmp_path).row_count == 1


def _replay(ledger: Ledger, path: Path) -> Replay:
    last = ledger.last_stream_id or ""
    return load_replay(ledger, path / POOLS, RoundRange("reward", "", last), PoolLimits())


def test_the_pools_forget_what_was_taken_back(tmp_path: Path) -> None:
    ledger, without = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    for each in (ledger, without):
        _append(each, *(_event(i) for i in range(150)), first=1)
    _append(ledger, *(_event(i, "mine") for i in range(200, 300)), first=200)
    for each in (ledger, without):
        _append(each, *(_event(i) for i in range(400, 410)), first=400)
    for name in ("a", "b"):
        (tmp_path / f"{name}-work").mkdir()
    with_it = _replay(ledger, tmp_path / "a-work")
    assert len(with_it.new) + len(with_it.heldout) > 200
    ledger.retract("mine")
    assert _replay(ledger, tmp_path / "a-work") == _replay(without, tmp_path / "b-work")


@contextmanager
def _consuming(url: str, archive: Path) -> Iterator[Consumer]:
    connected = sync_redis.Redis.from_url(url, socket_timeout=30)
    settings = ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=0.1)
    consumer = Consumer(connected, Ledger(archive), TrainerMetrics(), settings)
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    try:
        yield consumer
    finally:
        stop.set()
        thread.join(20)
        connected.close()
        assert not thread.is_alive()


async def _drained(consumer: Consumer, redis: Redis) -> None:
    for _ in range(1500):
        if await redis.xlen(keys.FEEDBACK_STREAM) == 0 or await asyncio.to_thread(consumer.drained):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the stream is not read")


def _new(outcomes: list[Any]) -> int:
    assert all(isinstance(each, RecordResult) for each in outcomes), outcomes
    return sum(not each.duplicate for each in outcomes)


async def test_over_the_wire_a_caller_takes_back_its_own_import_and_may_send_it_again(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    callers = CallersFile(tmp_path)
    mine, alone = [_event(i, "mine") for i in range(300, 900)], [_event(i) for i in range(100)]
    async with feedback_for(redis, callers, "one", "two") as (one, two):
        with _consuming(redis_url, tmp_path / "ledger") as consumer:
            assert _new(await one.record_batch(alone)) == 100
            assert _new(await two.record_batch(mine[:50])) == 50  # another caller's import of the same name
            await _drained(consumer, redis)
            before = _state(tmp_path / "ledger")
            assert _new(await one.record_batch(mine)) == 600
            assert _new(await one.record_batch(mine)) == 0
            await one.retract("mine")
            await _drained(consumer, redis)
            assert _state(tmp_path / "ledger") == before
            assert _new(await one.record_batch(mine)) == 600
            assert _new(await two.record_batch(mine[:50])) == 0
            await _drained(consumer, redis)
            assert Ledger(tmp_path / "ledger", writable=False).row_count == 750
        for wrong in ("", "x" * 65):
            with pytest.raises(InvalidRequest):
                await one.retract(wrong)


async def test_a_retraction_that_fails_midway_is_done_again(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch
) -> None:
    callers = CallersFile(tmp_path)
    retract, calls = Ledger.retract, []

    def breaks_once(self: Ledger, *args: Any) -> int:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return retract(self, *args)

    monkeypatch.setattr(Ledger, "retract", breaks_once)
    async with feedback_for(redis, callers, "one") as (one,):
        with _consuming(redis_url, tmp_path / "ledger") as consumer:
            assert _new(await one.record_batch([_event(i, "mine") for i in range(50)])) == 50
            await one.retract("mine")
            assert _new(await one.record_batch([_event(i) for i in range(60, 65)])) == 5
            await _drained(consumer, redis)
    assert len(calls) == 2
    assert sorted(Ledger(tmp_path / "ledger").event_ids()) == [f"e{i}" for i in range(60, 65)]
