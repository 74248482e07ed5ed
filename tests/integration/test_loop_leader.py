"""The leader's lock on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from support.redis_processes import until

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.leader import LeaderLock
from rewardloop_trainer.archive.stream_reader import StreamReader
from rewardloop_trainer.archive.trim import trim_archived


@pytest.fixture
def client(fresh_redis: EmbeddedRedis) -> Iterator[Any]:
    connected = redis_py.Redis.from_url(fresh_redis.url)
    yield connected
    connected.close()


def test_lock_is_renewed_while_held_and_free_once_released(client: Any) -> None:
    first, second = LeaderLock(client, ttl_s=0.4), LeaderLock(client, ttl_s=0.4)
    stop, nobody = threading.Event(), threading.Event()
    assert first.wait(stop)
    threading.Timer(1.0, nobody.set).start()
    assert not second.wait(nobody, poll_s=0.05)
    assert not first.lost.is_set()
    first.release()
    assert second.wait(stop, poll_s=0.05)
    assert second.epoch > first.epoch
    second.release()
    assert not client.exists(keys.TRAINER_LOCK)


def test_leader_that_was_overtaken_learns_it_and_does_not_free_the_others_lock(client: Any) -> None:
    lock = LeaderLock(client, ttl_s=0.4)
    assert lock.wait(threading.Event())
    client.set(keys.TRAINER_LOCK, "another")
    assert lock.lost.wait(2)
    lock.release()
    assert client.get(keys.TRAINER_LOCK) == b"another"


def test_leader_takes_the_lock_again_when_redis_lost_it(client: Any) -> None:
    lock = LeaderLock(client, ttl_s=0.4)
    assert lock.wait(threading.Event())
    client.flushall()
    deadline = time.monotonic() + 2
    while not client.exists(keys.TRAINER_LOCK) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.exists(keys.TRAINER_LOCK)
    assert not lock.lost.is_set()
    lock.release()


def test_epoch_that_a_failover_lost_is_put_back(client: Any) -> None:
    lock = LeaderLock(client, ttl_s=0.4, newest_epoch=lambda: 6)
    assert lock.wait(threading.Event())
    client.set(keys.TRAINER_EPOCH, 5)
    until(lambda: client.get(keys.TRAINER_EPOCH) == b"7", patience_s=5)
    lock.release()


def test_a_redis_at_its_memory_limit_gets_a_leader_who_makes_room(client: Any) -> None:
    for _ in range(200):
        client.xadd(keys.FEEDBACK_STREAM, {keys.EVENT_FIELD: b"x" * 1_000})
    client.config_set("maxmemory", "100kb")
    with pytest.raises(redis_py.exceptions.OutOfMemoryError):
        client.set("another", "value")
    lock, stop = LeaderLock(client, ttl_s=0.4, newest_epoch=lambda: 6), threading.Event()
    threading.Timer(5.0, stop.set).start()
    assert lock.wait(stop, poll_s=0.05)
    reader = StreamReader(client, max_entry_bytes=10_000)
    reader.join()
    reader.join()  # a group that is there already
    entries = reader.read(1_000, 1_000_000, block_ms=0)
    reader.acknowledge([stream_id.decode() for stream_id, _ in entries])
    assert len(entries) == 200
    assert trim_archived(client) == 0
    lock.release()
    assert client.get(keys.TRAINER_EPOCH) == b"7"
