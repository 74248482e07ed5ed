"""The trainer as a real process: killed at any moment, doubled, stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.signals import choice, put
from support.trainers import Archiver

from rewardloop.formats import keys
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.ledger import Ledger

pytestmark = pytest.mark.long


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    connected = redis.Redis.from_url(server.url)
    yield connected
    connected.close()
    server.stop()


def url_of(client: Any) -> str:
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


def test_trainer_killed_five_times_archives_every_signal_once(client: Any, tmp_path: Path) -> None:
    chance = random.Random(7)
    sent = 0
    for kill in range(5):
        archiver = Archiver(tmp_path, url_of(client), f"run{kill}")
        archiver.start()
        archiver.wait_for_log("leading")
        deadline = time.monotonic() + chance.uniform(0.05, 0.6)
        while time.monotonic() < deadline:
            put(client, *(choice(i) for i in range(sent, sent + 40)))
            sent += 40
        assert archiver.process is not None
        if kill % 2 == 0:  # between a segment's rename and its acknowledgement
            segments = set(os.listdir(tmp_path / "ledger"))
            put(client, *(choice(i) for i in range(sent, sent + 40)))
            sent += 40
            while not any(n[0] != "." for n in set(os.listdir(tmp_path / "ledger")) - segments):
                assert time.monotonic() < deadline + 20
        archiver.process.kill()
        archiver.process.wait()

    last = Archiver(tmp_path, url_of(client), "last", "--once")
    assert last.start().wait(60) == 0, last.log_path.read_text()
    stored = Ledger(tmp_path / "ledger", writable=False).event_ids()
    assert sorted(stored) == sorted(f"e{i}" for i in range(sent))
    assert client.xpending(keys.FEEDBACK_STREAM, keys.FEEDBACK_GROUP)["pending"] == 0


def test_second_trainer_waits_and_takes_over(client: Any, tmp_path: Path) -> None:
    first, second = Archiver(tmp_path, url_of(client), "first"), Archiver(tmp_path, url_of(client), "second")
    leader = first.start()
    first.wait_for_log("leading")
    waiting = second.start()
    second.wait_for_log("another trainer is running")
    time.sleep(1.5)  # longer than the lock's life: it is being renewed
    assert "leading" not in second.log_path.read_text()
    leader.kill()
    second.wait_for_log("leading")
    put(client, choice(1))
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == 0
    leader.wait()


def test_sigterm_archives_what_was_read_and_exits_clean(client: Any, tmp_path: Path) -> None:
    archiver = Archiver(tmp_path, url_of(client), "trainer", "--flush-age-s", "1000", "--flush-rows", "100000")
    process = archiver.start()
    archiver.wait_for_log("leading")
    put(client, *(choice(i) for i in range(30)))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0, archiver.log_path.read_text()
    assert not client.exists(keys.TRAINER_LOCK)
    assert len(Ledger(tmp_path / "ledger", writable=False).event_ids()) == 30


def test_wrong_setting_is_named_and_ends_the_process(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "rewardloop_trainer"]
    config = tmp_path / "train.toml"
    config.write_text('reward_min_signal = 3\n[reward]\nheads = "many"\n')
    done = subprocess.run([*argv, "--config", str(config)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "reward_min_signal: unknown setting" in done.stderr
    assert "reward.heads" in done.stderr


def test_corrupt_ledger_is_named_and_ends_the_process(client: Any, tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "1-0_2-0.parquet").write_bytes(b"this is not parquet")
    archiver = Archiver(tmp_path, url_of(client))
    assert archiver.start().wait(30) == 1
    assert "1-0_2-0.parquet" in archiver.log_path.read_text()
    assert "Traceback" not in archiver.log_path.read_text()
