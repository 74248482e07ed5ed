"""Publishing: once a round, with the range of signals that it learned from, from whichever version is live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_client import Overtaken, RewardloopClient
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.fence import Fenced
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.rounds.live_pointer import live_version
from rewardloop_trainer.rounds.pauses import ServerAway
from rewardloop_trainer.rounds.publish import data_range, promote, publish_once


def write(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"weights")


def test_round_that_died_after_publishing_does_not_publish_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_once(store, Manifest(model="reward", notes={"new_signals": "7"}), write, "trainer/reward/1")
    again = publish_once(store, Manifest(model="reward"), write, "trainer/reward/1")
    other = publish_once(store, Manifest(model="reward"), write, "trainer/reward/2")
    assert (first.version, again, other.version) == ("1", first, "2")
    assert store.manifest("reward", 1).notes == {"new_signals": "7", "round": "trainer/reward/1"}


def test_unreadable_version_does_not_hide_what_the_round_published(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_once(store, Manifest(model="reward"), write, "a/reward/1")
    publish_once(store, Manifest(model="reward"), write, "b/reward/1")
    (tmp_path / "reward" / "2" / "manifest.json").write_text("{")
    assert publish_once(store, Manifest(model="reward"), write, "a/reward/1") == first


def test_data_range_names_the_ledger_and_samples_only_new_arrivals(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([Recorded(f"{1000 + i}-0", choice(i)) for i in range(5000)])
    found = data_range(ledger, "1999-0", "4999-0", seed=1)
    assert (found.first_stream_id, found.last_stream_id, found.signals) == ("1000-0", "4999-0", 4000)
    assert len(found.arrivals) == 1000
    assert min(found.arrivals) >= 1_700_000_001.0
    assert max(found.arrivals) < 1_700_000_004.0
    assert found == data_range(ledger, "1999-0", "4999-0", seed=1)


def test_live_version_is_the_pointers_else_the_newest(tmp_path: Path, fresh_redis: EmbeddedRedis) -> None:
    store = ModelStore(tmp_path / "models")
    client: Any = redis_py.Redis.from_url(fresh_redis.url)
    assert live_version(client, store, "reward") is None
    for _ in range(2):
        store.publish(Manifest(model="reward"), write)
    assert live_version(client, store, "reward") == "2"
    client.hset(keys.ACTIVE, "reward", '{"version": "1", "previous": [], "changed_at": "", "reason": ""}')
    assert live_version(client, store, "reward") == "1"
    client.close()


def test_overtaken_leader_is_told_from_a_refusal() -> None:
    class Server:
        def promote(self, *args: object, **options: object) -> None:
            assert options["leader_epoch"] == 3
            raise Overtaken("a later one leads", reason="OVERTAKEN")

    server: Any = Server()
    with pytest.raises(Fenced, match="a later one leads"):
        promote(server, "reward", "1", "test", timeout_s=1.0, leader_epoch=3)


def test_absent_server_is_told_from_a_refusal() -> None:
    with RewardloopClient("127.0.0.1:1", max_attempts=1) as server, pytest.raises(ServerAway):
        promote(server, "reward", "1", "test", timeout_s=1.0)
