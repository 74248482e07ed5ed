"""The consumer's bad days: an entry that kills whoever reads it, a full disk, a silent Redis."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from support.signals import choice, put
from support.small_disk import fill, small_disk
from support.tcp_proxy import TcpProxy, Toxic

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive import redis_link
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.dead_letters import letters, requeue
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics

# Dies on the signal with this id, as a bug in a decoder written in C would.
_MORTAL = """
import os, sys, threading
from rewardloop_trainer.archive import consume, redis_link
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics

decode = consume.decode

def mortal(stream_id, fields):
    if fields[b"id"] == b"e7":
        os.kill(os.getpid(), 9)
    return decode(stream_id, fields)

consume.decode = mortal
stop = threading.Event()
settings = consume.ConsumerSettings(flush_age_s=0.05)
consumer = consume.Consumer(redis_link.connect_redis(sys.argv[1]), Ledger(sys.argv[2]), TrainerMetrics(), settings)
threading.Thread(target=consumer.run, args=(stop,)).start()
while not consumer.drained():
    stop.wait(0.05)
stop.set()
"""


@pytest.fixture
def client(fresh_redis: EmbeddedRedis) -> Iterator[Any]:
    connected = redis.Redis.from_url(fresh_redis.url)
    yield connected
    connected.close()


@contextmanager
def consuming(url: str, archive: Path, metrics: TrainerMetrics) -> Iterator[Consumer]:
    stop, failures = threading.Event(), list[BaseException]()
    connected = redis_link.connect_redis(url)
    consumer = Consumer(
        connected, Ledger(archive), metrics, ConsumerSettings(flush_age_s=0.05, flush_rows=50, maintain_every_s=0.2)
    )

    def run() -> None:
        try:
            consumer.run(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield consumer
    stop.set()
    thread.join()
    connected.close()
    assert failures == []


def until(holds: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stored(archive: Path) -> list[str]:
    return sorted(Ledger(archive, writable=False).event_ids())


def test_entry_that_kills_its_reader_becomes_a_dead_letter_and_the_others_are_archived(
    fresh_redis: EmbeddedRedis, client: Any, tmp_path: Path
) -> None:
    put(client, *(choice(i) for i in range(20)))
    argv = [sys.executable, "-c", _MORTAL, fresh_redis.url, str(tmp_path / "ledger")]
    deaths = 0
    while (status := subprocess.run(argv, timeout=120).returncode) != 0:
        assert status == -9
        deaths += 1
        assert deaths < 10
    assert deaths >= 3  # fewer could be somebody's kill -9
    assert stored(tmp_path / "ledger") == sorted(f"e{i}" for i in range(20) if i != 7)
    ((_, letter),) = client.xrange(keys.DEAD_LETTERS)
    assert b"died" in letter[b"reason"]
    assert b"good answer 7" in letter[b"event"]
    assert not client.exists(keys.SUSPECT)


def test_entry_whose_reader_raises_is_put_aside_and_new_when_it_is_requeued(
    client: Any, fresh_redis: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, choice(1))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    client.xreadgroup(keys.FEEDBACK_GROUP, "dead", {keys.FEEDBACK_STREAM: ">"})
    for _ in range(6):
        client.xautoclaim(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, "dead", 0)
    append = Ledger.append

    def fail(self: Ledger, rows: Any) -> Any:
        raise ValueError("a text that no column can hold")

    monkeypatch.setattr(Ledger, "append", fail)
    with consuming(fresh_redis.url, tmp_path / "ledger", TrainerMetrics()):
        until(lambda: client.xlen(keys.DEAD_LETTERS) == 1)
        monkeypatch.setattr(Ledger, "append", append)
        (letter,) = letters(client)
        assert "no column can hold" in letter.reason
        assert requeue(client, letter)
        until(lambda: stored(tmp_path / "ledger") == ["e1"])
    assert client.xlen(keys.DEAD_LETTERS) == 0


def test_often_read_entries_that_are_well_are_archived(client: Any, fresh_redis: EmbeddedRedis, tmp_path: Path) -> None:
    put(client, *(choice(i) for i in range(10)))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    client.xreadgroup(keys.FEEDBACK_GROUP, "dead", {keys.FEEDBACK_STREAM: ">"})
    for _ in range(6):
        client.xautoclaim(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, "dead", 0)
    with consuming(fresh_redis.url, tmp_path / "ledger", TrainerMetrics()) as consumer:
        until(consumer.drained)
    assert stored(tmp_path / "ledger") == sorted(f"e{i}" for i in range(10))
    assert client.xlen(keys.DEAD_LETTERS) == 0


def test_full_disk_stops_acknowledgements_and_room_ends_it(
    client: Any, fresh_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    metrics = TrainerMetrics()
    with small_disk(tmp_path / "disk") as disk:
        archive = disk / "ledger"
        with consuming(fresh_redis.url, archive, metrics) as consumer:
            put(client, *(choice(i) for i in range(20)))
            until(consumer.drained)
            ballast = fill(disk)
            put(client, *(choice(i) for i in range(20, 200)))
            until(lambda: (metrics.registry.get_sample_value("rewardloop_trainer_disk_errors_total") or 0) >= 2)
            assert not consumer.drained()
            assert len(stored(archive)) < 200
            assert not [name for name in os.listdir(archive) if name.startswith(".writing")]
            ballast.unlink()
            until(consumer.drained)
        assert stored(archive) == sorted(f"e{i}" for i in range(200))
    assert client.xlen(keys.DEAD_LETTERS) == 0


def test_silent_and_cut_redis_lose_and_double_nothing(client: Any, fresh_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with TcpProxy(fresh_redis.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        sent = 0
        with consuming(url, tmp_path / "ledger", TrainerMetrics()) as consumer:
            for toxic in (Toxic(cut_after=1500), Toxic(latency_s=0.3), Toxic(half_close=True), Toxic(swallow=True)):
                proxy.toxic = toxic
                put(client, *(choice(i) for i in range(sent, sent + 60)))
                sent += 60
                time.sleep(0.5)
                proxy.heal()
                until(consumer.drained)
    assert stored(tmp_path / "ledger") == sorted(f"e{i}" for i in range(sent))
