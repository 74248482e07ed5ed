"""The consumer against a real redis-server: everything archived once, whatever happens in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from support.signals import choice, put

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.archive.trim import trim_archived
from rewardloop_trainer.metrics import TrainerMetrics


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[Any]:
    connected = redis.Redis.from_url(server.url, socket_timeout=30)
    yield connected
    connected.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def make_consumer(client: Any, archive: Path, metrics: TrainerMetrics | None = None, **settings: Any) -> Consumer:
    defaults = {"flush_age_s": 0.05, "block_ms": 20, "maintain_every_s": 0.1}
    return Consumer(client, Ledger(archive), metrics or TrainerMetrics(), ConsumerSettings(**{**defaults, **settings}))


@contextmanager
def running(consumer: Consumer) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(condition: Callable[[], bool], patience_s: float = 15.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time given"
        time.sleep(0.02)


def stored(archive: Path) -> list[str]:
    """Event ids of every row, repeated ones too."""
    return Ledger(archive, writable=False).event_ids()


def pending(client: Any) -> int:
    return int(client.xpending(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP)["pending"])


def test_signals_are_archived_acknowledged_and_trimmed(client: Any, archive: Path) -> None:
    put(client, *(choice(i) for i in range(250)))
    consumer = make_consumer(client, archive)
    with running(consumer):
        put(client, *(choice(i) for i in range(250, 500)))
        until(lambda: consumer.drained() and client.xlen(keys.FEEDBACK_STREAM) == 0)
    assert stored(archive) == [f"e{i}" for i in range(500)]


def test_garbage_goes_to_the_dead_letters_and_the_rest_goes_on(client: Any, archive: Path) -> None:
    no_signal, no_prompt, bad_index, bad_rating = choice(1), choice(2), choice(3), choice(4)
    no_signal.ClearField("choice")
    no_prompt.ClearField("prompt")
    bad_index.choice.chosen = 7
    bad_rating.rating.value, bad_rating.rating.maximum = float("nan"), 5
    put(client, choice(0))
    client.xadd(keys.FEEDBACK_STREAM, {"event": b"\xff\xfe\x00 not protobuf"})
    client.xadd(keys.FEEDBACK_STREAM, {"something": "else"})
    bad = put(client, no_signal, no_prompt, bad_index, bad_rating)
    put(client, choice(5))
    metrics = TrainerMetrics()
    consumer = make_consumer(client, archive, metrics)
    with running(consumer):
        until(consumer.drained)
    assert stored(archive) == ["e0", "e5"]
    letters = [fields for _, fields in client.xrange(keys.DEAD_LETTERS)]
    assert letters[0][b"event"] == b"\xff\xfe\x00 not protobuf"
    assert [letter[b"source_id"].decode() for letter in letters[2:]] == bad
    reasons = [letter[b"reason"].decode() for letter in letters]
    expected = ["not a FeedbackEvent", "no field", "signal: none of", "no prompt", "not an index", "not a finite"]
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason
    assert metrics.registry.get_sample_value("rewardloop_trainer_dead_letters_total") == 6


def test_pending_entries_of_a_dead_consumer_are_claimed(client: Any, archive: Path) -> None:
    put(client, *(choice(i) for i in range(30)))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    client.xreadgroup(keys.FEEDBACK_GROUP, "dead", {keys.FEEDBACK_STREAM: ">"}, count=10)
    consumer = make_consumer(client, archive)
    with running(consumer):
        until(consumer.drained)
    assert stored(archive) == [f"e{i}" for i in range(30)]


def test_archived_but_unacknowledged_entries_are_acknowledged_without_a_second_row(client: Any, archive: Path) -> None:
    stream_ids = put(client, *(choice(i) for i in range(20)))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    client.xreadgroup(keys.FEEDBACK_GROUP, "killed", {keys.FEEDBACK_STREAM: ">"}, count=15)
    Ledger(archive).append([Recorded(stream_ids[i], choice(i)) for i in range(12)])  # killed before its XACK
    consumer = make_consumer(client, archive)
    with running(consumer):
        until(consumer.drained)
    assert stored(archive) == [f"e{i}" for i in range(20)]


def test_event_sent_twice_is_archived_once(client: Any, archive: Path) -> None:
    put(client, choice(1), choice(2), choice(1))
    consumer = make_consumer(client, archive)
    with running(consumer):
        until(consumer.drained)
    put(client, choice(2), choice(3))
    again = make_consumer(client, archive)
    with running(again):
        until(again.drained)
    assert stored(archive) == ["e1", "e2", "e3"]


def test_trimming_spares_what_any_group_has_not_read_or_not_acknowledged(client: Any) -> None:
    stream_ids = put(client, *(choice(i) for i in range(20)))
    for group in (keys.FEEDBACK_GROUP, "audit"):
        client.xgroup_create(keys.FEEDBACK_STREAM, group, id="0")
    left = lambda: [i.decode() for i, _ in client.xrange(keys.FEEDBACK_STREAM)]  # noqa: E731

    client.xreadgroup(keys.FEEDBACK_GROUP, "c", {keys.FEEDBACK_STREAM: ">"}, count=20)
    client.xack(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, *stream_ids[:10], *stream_ids[12:])
    trim_archived(client)
    assert left() == stream_ids  # the other group has read nothing

    client.xreadgroup("audit", "a", {keys.FEEDBACK_STREAM: ">"}, count=5)
    client.xack(keys.FEEDBACK_STREAM, "audit", *stream_ids[:5])
    trim_archived(client)
    assert left() == stream_ids[5:]

    client.xreadgroup("audit", "a", {keys.FEEDBACK_STREAM: ">"}, count=15)
    client.xack(keys.FEEDBACK_STREAM, "audit", *stream_ids[5:])
    assert trim_archived(client) == 10
    assert left() == stream_ids[10:]  # two pending in the trainer's group, and what follows them


def test_stream_that_nobody_reads_yet_is_not_trimmed(client: Any) -> None:
    put(client, choice(1))
    assert trim_archived(client) == 1


def test_lost_group_is_made_again_and_nothing_is_doubled(client: Any, archive: Path) -> None:
    put(client, *(choice(i) for i in range(50)))
    consumer = make_consumer(client, archive, maintain_every_s=1000)  # untrimmed: the whole stream comes again
    with running(consumer):
        until(consumer.drained)
        client.xgroup_destroy(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP)
        put(client, *(choice(i) for i in range(50, 80)))
        until(consumer.drained)
    assert stored(archive) == [f"e{i}" for i in range(80)]


def test_emptied_redis_is_followed_from_its_new_start(client: Any, archive: Path) -> None:
    put(client, *(choice(i) for i in range(50)))
    consumer = make_consumer(client, archive)
    with running(consumer):
        until(consumer.drained)
        client.flushall()
        put(client, *(choice(i) for i in range(50, 80)))
        until(consumer.drained)
    assert stored(archive) == [f"e{i}" for i in range(80)]


def test_entry_deleted_while_pending_does_not_stop_trimming(client: Any, archive: Path) -> None:
    stream_ids = put(client, *(choice(i) for i in range(5)))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    client.xreadgroup(keys.FEEDBACK_GROUP, "dead", {keys.FEEDBACK_STREAM: ">"}, count=5)
    client.xdel(keys.FEEDBACK_STREAM, stream_ids[0])
    consumer = make_consumer(client, archive)
    with running(consumer):
        until(lambda: consumer.drained() and client.xlen(keys.FEEDBACK_STREAM) == 0)
    assert stored(archive) == ["e1", "e2", "e3", "e4"]


def test_consumer_outlives_a_killed_redis(server: EmbeddedRedis, client: Any, archive: Path) -> None:
    metrics = TrainerMetrics()
    consumer = make_consumer(client, archive, metrics)
    sent = 0
    with running(consumer):
        for _ in range(3):
            put(client, *(choice(i) for i in range(sent, sent + 100)))
            sent += 100
            assert server._process is not None
            server._process.kill()
            server._process.wait()
            time.sleep(0.2)
            server.start()
        put(client, choice(sent))
        until(consumer.drained)
    assert stored(archive) == [f"e{i}" for i in range(sent + 1)]
    assert (metrics.registry.get_sample_value("rewardloop_trainer_redis_errors_total") or 0) >= 1


def test_buffered_rows_are_archived_on_stop(client: Any, archive: Path) -> None:
    put(client, *(choice(i) for i in range(10)))
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    consumer = make_consumer(client, archive, flush_age_s=1000, maintain_every_s=1000)
    with running(consumer):
        until(lambda: pending(client) == 10)
    assert stored(archive) == [f"e{i}" for i in range(10)]
    assert pending(client) == 0
