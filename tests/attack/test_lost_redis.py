"""A Redis that comes back empty and with an earlier clock: signals that come then are new to everybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.signals import choice, put

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger, order
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.data.pools.pools import PoolLimits, Pools, RoundRange
from rewardloop_trainer.metrics import TrainerMetrics

FAST = 1_900_000_000_000  # what a clock that is years ahead made of the present, in milliseconds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[Any]:
    connected = redis.Redis.from_url(server.url)
    yield connected
    connected.close()


def put_at(client: Any, milliseconds: int, event: feedback_pb2.FeedbackEvent) -> str:
    fields = {keys.EVENT_FIELD: event.SerializeToString(), keys.ID_FIELD: event.event_id}
    return str(client.xadd(keys.FEEDBACK_STREAM, fields, id=f"{milliseconds}-0").decode())


def drain(client: Any, archive: Path) -> Ledger:
    """Archive the whole stream with a consumer that starts and ends."""
    stop = threading.Event()
    settings = ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=0.1)
    consumer = Consumer(client, Ledger(archive), TrainerMetrics(), settings)
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while not (consumer.drained() and client.xlen(keys.FEEDBACK_STREAM) == 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop.set()
    thread.join()
    return Ledger(archive, writable=False)


def test_signals_after_the_loss_are_new_to_ledger_and_rounds(client: Any, tmp_path: Path) -> None:
    for i in range(20):
        put_at(client, FAST + i, choice(i))
    ledger = drain(client, tmp_path / "ledger")
    learned = ledger.last_stream_id
    assert learned == f"{FAST + 19}-0"
    client.flushall()  # its disk is gone, and its clock is right now
    sent = put(client, *(choice(i) for i in range(20, 70)))
    assert order(sent[-1]) < order(learned)

    ledger = drain(client, tmp_path / "ledger")
    assert ledger.rows_after(learned) == 50
    new = list(ledger.scan(learned))
    assert [row.event.event_id for row in new] == [f"e{i}" for i in range(20, 70)]
    assert [row.source_id for row in new] == sent
    assert [row.stream_id for row in ledger.scan()] == sorted((r.stream_id for r in ledger.scan()), key=order)
    assert ledger.last_stream_id is not None
    with Pools(None, PoolLimits(heldout_share=0.1, few=0)) as pools:
        pools.prepare(ledger, RoundRange("reward", "", learned))
        pools.prepare(ledger, RoundRange("reward", learned, ledger.last_stream_id))
        assert len(pools.fresh("reward")) == 50

    # The next process goes on behind them, also with what was sent before.
    put(client, choice(21), choice(70))
    ledger = drain(client, tmp_path / "ledger")
    assert [row.event.event_id for row in ledger.scan(new[-1].stream_id)] == ["e70"]


def test_a_new_signal_with_the_stream_id_of_an_archived_one_is_archived(client: Any, tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").append([Recorded(f"{FAST + i}-0", choice(i)) for i in range(10)])
    put_at(client, FAST + 3, choice(100))
    put_at(client, FAST + 4, choice(4))
    ledger = drain(client, tmp_path / "ledger")
    assert [row.event.event_id for row in ledger.scan(f"{FAST + 9}-0")] == ["e100"]
    assert ledger.row_count == 11


def test_a_consumer_that_runs_through_the_loss_goes_on(client: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    archive = tmp_path / "ledger"
    settings = ConsumerSettings(flush_age_s=0.05, block_ms=20, maintain_every_s=0.1)
    consumer = Consumer(client, Ledger(archive), TrainerMetrics(), settings)
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()

    def until_archived(count: int) -> None:
        deadline = time.monotonic() + 60
        while Ledger(archive, writable=False).row_count < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    for i in range(10):
        put_at(client, FAST + i, choice(i))
    until_archived(10)
    client.flushall()
    put(client, *(choice(i) for i in range(10, 30)))
    until_archived(30)
    stop.set()
    thread.join()
    ledger = Ledger(archive, writable=False)
    assert ledger.rows_after(f"{FAST + 9}-0") == 20
    assert len(set(ledger.event_ids())) == 30
