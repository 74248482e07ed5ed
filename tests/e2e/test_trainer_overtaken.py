"""A trainer stopped by SIGSTOP for longer than its lock lives, then woken: it writes nothing more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import redis
from support.redis_processes import until
from support.signals import choice, put
from support.trainers import Archiver

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.ledger import Ledger

pytestmark = pytest.mark.long


def test_woken_leader_writes_nothing_and_ends(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    client = redis.Redis.from_url(server.url)
    # What the first one has read waits in its memory, and is to be written when it wakes up and ends.
    first = Archiver(tmp_path, server.url, "first", "--flush-age-s", "1000")
    second = Archiver(tmp_path, server.url, "second")
    try:
        old = first.start()
        first.wait_for_log("leading")
        put(client, *(choice(i) for i in range(40)))
        until(lambda: client.xpending(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP)["pending"] == 40)
        old.send_signal(signal.SIGSTOP)
        new = second.start()
        second.wait_for_log("leading")
        until(lambda: len(Ledger(tmp_path / "ledger", writable=False).event_ids()) == 40)
        before = {path.name for path in (tmp_path / "ledger").glob("*.parquet")}
        old.send_signal(signal.SIGCONT)
        assert old.wait(60) == 1
        assert {path.name for path in (tmp_path / "ledger").glob("*.parquet")} == before
        put(client, choice(40))
        new.send_signal(signal.SIGTERM)
        assert new.wait(30) == 0
        last = Archiver(tmp_path, server.url, "last", "--once")
        assert last.start().wait(60) == 0
    finally:
        for archiver in (first, second):
            archiver.kill()
        client.close()
        server.stop()
    rows = [row.event.event_id for row in Ledger(tmp_path / "ledger", writable=False).scan()]
    assert sorted(rows) == sorted(f"e{i}" for i in range(41))
    assert Ledger(tmp_path / "ledger", writable=False).row_count == 41
