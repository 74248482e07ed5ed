"""A stream full of huge entries, as callers could send before signals had a bound, against the trainer's consumer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from support.signals import choice, put

from rewardloop.formats import keys
from rewardloop.v1 import feedback_pb2
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive import segment_files
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded

MIB = 2**20

# Archives everything, then prints by how many bytes its peak of memory grew.
_ARCHIVER = """
import resource, sys, threading
from rewardloop_trainer.archive import consume, redis_link
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
ledger, stop = Ledger(sys.argv[2]), threading.Event()
before = peak()
settings = consume.ConsumerSettings(flush_age_s=0.05, max_bytes=int(sys.argv[3]))
consumer = consume.Consumer(redis_link.connect_redis(sys.argv[1]), ledger, TrainerMetrics(), settings)
thread = threading.Thread(target=consumer.run, args=(stop,))
thread.start()
while not consumer.drained():
    stop.wait(0.05)
stop.set()
thread.join()
print(peak() - before)
"""

# Dies of the memory that a signal of a megabyte costs it.
_POOR = """
import os, sys, threading
from rewardloop_trainer.archive import consume, redis_link
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics

decode = consume.decode

def dear(stream_id, fields):
    if len(fields[b"event"]) > 2**20:
        os.kill(os.getpid(), 9)  # as the kernel does when memory runs out
    return decode(stream_id, fields)

consume.decode = dear
stop = threading.Event()
settings = consume.ConsumerSettings(flush_age_s=0.05)
consumer = consume.Consumer(redis_link.connect_redis(sys.argv[1]), Ledger(sys.argv[2]), TrainerMetrics(), settings)
threading.Thread(target=consumer.run, args=(stop,)).start()
while not consumer.drained():
    stop.wait(0.05)
stop.set()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[Any]:
    connected = redis.Redis.from_url(server.url, socket_timeout=60)
    yield connected
    connected.close()


def huge(number: int, mib: int) -> feedback_pb2.FeedbackEvent:
    event = choice(number)
    event.responses[0] = f"{number} " + "x" * (mib * MIB)
    return event


def stored(archive: Path) -> list[str]:
    return sorted(Ledger(archive, writable=False).event_ids())


def test_huge_entries_are_archived_within_a_bound_and_too_huge_ones_put_aside(
    server: EmbeddedRedis, client: Any, tmp_path: Path
) -> None:
    for number in range(0, 60, 10):
        put(client, *(huge(i, 4) for i in range(number, number + 9)), huge(number + 9, 16))
    put(client, choice(100))
    # An earlier process has read them all, and died.
    client.xgroup_create(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP, id="0")
    for _ in range(30):
        client.xreadgroup(keys.FEEDBACK_GROUP, "dead", {keys.FEEDBACK_STREAM: ">"}, count=1)
    argv = [sys.executable, "-c", _ARCHIVER, server.url, str(tmp_path / "ledger"), str(32 * MIB)]
    ended = subprocess.run(argv, timeout=240, check=True, capture_output=True, text=True)
    grown = int(ended.stdout.split()[-1])
    assert stored(tmp_path / "ledger") == sorted(f"e{i}" for i in [*range(60), 100] if i % 10 != 9)
    letters = client.xrange(keys.DEAD_LETTERS)
    assert len(letters) == 6
    assert all(b"more than 8388608" in fields[b"reason"] for _, fields in letters)
    # Decoded, as columns and as a file the bytes that are held are there several times, but never all 300 MiB of them.
    assert grown < 8 * 32 * MIB, f"{grown / MIB:.0f} MiB"


def test_entries_that_kill_every_reader_are_put_aside_one_by_one(
    server: EmbeddedRedis, client: Any, tmp_path: Path
) -> None:
    put(client, choice(0), huge(1, 2), choice(2), huge(3, 2), choice(4))
    argv = [sys.executable, "-c", _POOR, server.url, str(tmp_path / "ledger")]
    deaths = 0
    while (status := subprocess.run(argv, timeout=120).returncode) != 0:
        assert status == -9
        deaths += 1
        assert deaths < 12
    assert stored(tmp_path / "ledger") == ["e0", "e2", "e4"]
    assert [fields[b"reason"] for _, fields in client.xrange(keys.DEAD_LETTERS)] == [
        b"the process that read it died"
    ] * 2
    assert not client.exists(keys.SUSPECT)


def test_no_group_of_rows_in_the_ledger_is_larger_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_files, "_GROUP_BYTES", 2 * MIB)
    ledger = Ledger(tmp_path)
    for start in range(0, 320, 10):  # the same text again and again, which a file holds once
        events = [choice(i) if i % 10 else huge(i, 1) for i in range(start, start + 10)]
        ledger.append([Recorded(f"{1000 + start + i}-0", event) for i, event in enumerate(events)])
    merged = ledger.compact(segments=32)
    assert merged is not None
    assert sorted(ledger.event_ids()) == sorted(f"e{i}" for i in range(320))
    file = pq.ParquetFile(tmp_path / merged.name)
    sizes = [file.read_row_group(i).nbytes for i in range(file.num_row_groups)]
    assert len(sizes) >= 16
    assert max(sizes) <= 3 * MIB
    assert [row.event.event_id for row in ledger.scan("1100-0", "1105-0")] == [f"e{i}" for i in range(101, 106)]


def test_rows_are_handed_on_in_bounded_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardloop_trainer.archive.ledger._PART_BYTES", 2 * MIB)
    ledger = Ledger(tmp_path)
    ledger.append([Recorded(f"{1000 + i}-0", huge(i, 1) if i < 10 else choice(i)) for i in range(100)])
    parts = list(ledger.parts(most_rows=30))
    assert [len(part) for part in parts] == [2] * 5 + [30, 30, 30]
    assert [row.event.event_id for part in parts for row in part] == [f"e{i}" for i in range(100)]


def test_the_newest_dead_letters_stay_within_their_bounds(client: Any) -> None:
    from rewardloop_trainer.archive.dead_letters import LetterBounds, drop_oldest_letters

    for number in range(50):
        client.xadd(keys.DEAD_LETTERS, {"event": b"x" * 10_000, "reason": f"r{number}", "source_id": ""})
    kept = lambda: [fields[b"reason"].decode() for _, fields in client.xrange(keys.DEAD_LETTERS)]  # noqa: E731
    assert drop_oldest_letters(client, LetterBounds()) == 0
    assert drop_oldest_letters(client, LetterBounds(most=40)) == 10
    assert kept() == [f"r{i}" for i in range(10, 50)]
    dropped = drop_oldest_letters(client, LetterBounds(max_bytes=100_000))
    assert 28 <= dropped <= 36
    assert kept()[-1] == "r49"
    assert client.memory_usage(keys.DEAD_LETTERS) <= 110_000
    assert drop_oldest_letters(client, LetterBounds(max_bytes=1)) > 0
    assert kept() == ["r49"]
