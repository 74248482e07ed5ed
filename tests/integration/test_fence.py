"""A leader that was overtaken writes nothing: not to the ledger, not to its state, not to the store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import redis as redis_py
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.fence import Fence, Fenced
from rewardloop_trainer.archive.leader import LeaderLock
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.archive.ledger_columns import Recorded
from rewardloop_trainer.rounds.publish import publish_once
from rewardloop_trainer.rounds.trainer_state import StateFile, TrainerState


def leading(archive: Path | str, epoch: int) -> Fence:
    fence = Fence(archive)
    fence.advance(epoch)
    return fence


def row(number: int) -> Recorded:
    return Recorded(f"{1000 + number}-0", choice(number))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*")}


def test_overtaken_leader_appends_and_compacts_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "ledger"
    old = Ledger(archive, fence=leading(archive, 1))
    for i in range(4):
        old.append([row(i)])
    new = Ledger(archive, fence=leading(archive, 2))
    before = names(archive)
    with pytest.raises(Fenced):
        old.append([row(9)])
    with pytest.raises(Fenced):
        old.compact(segments=2)
    assert names(archive) == before
    new.append([row(4)])
    assert new.compact(segments=2) is not None
    assert sorted(Ledger(archive, writable=False).event_ids()) == [f"e{i}" for i in range(5)]


def test_overtaken_leader_writes_no_state(tmp_path: Path) -> None:
    old = StateFile(tmp_path / "work", leading(tmp_path / "ledger", 1))
    new = StateFile(tmp_path / "work", leading(tmp_path / "ledger", 2))
    new.write(TrainerState("new"))
    with pytest.raises(Fenced):
        old.write(TrainerState("old"))
    assert new.read() == TrainerState("new")


def test_overtaken_leader_publishes_nothing(tmp_path: Path) -> None:
    store, archive = ModelStore(tmp_path / "models"), tmp_path / "ledger"
    old, new = Ledger(archive, fence=leading(archive, 1)), Ledger(archive, fence=leading(archive, 2))

    def write(directory: Path) -> None:
        (directory / "model.onnx").write_bytes(b"graph")

    manifest = Manifest(model="reward")
    with pytest.raises(Fenced):
        publish_once(store, manifest, write, "round", old.held)
    assert store.versions("reward") == []
    assert publish_once(store, manifest, write, "round", new.held).version == "1"
    assert [path.name for path in (tmp_path / "models" / "reward").iterdir()] == ["1"]


def test_earlier_epoch_cannot_lead_again(tmp_path: Path) -> None:
    leading(tmp_path, 5)
    with pytest.raises(Fenced):
        Fence(tmp_path).advance(4)


def test_object_store_keeps_leaders_apart_by_name() -> None:
    archive = "memory://fenced-ledger"
    fsspec.filesystem("memory").store.clear()
    old = Ledger(archive, fence=leading(archive, 1))
    old.append([row(0)])
    new = Ledger(archive, fence=leading(archive, 2))
    with pytest.raises(Fenced):
        old.append([row(0), row(1)])
    new.append([row(0)])  # claimed anew: the same rows under another name
    assert len(new.segments) == 2
    assert [r.event.event_id for r in Ledger(archive, writable=False).scan()] == ["e0"]


def test_epoch_goes_on_rising_when_redis_forgot_it(fresh_redis: EmbeddedRedis, tmp_path: Path) -> None:
    client: Any = redis_py.Redis.from_url(fresh_redis.url)
    epochs = []
    for _ in range(3):
        fence = Fence(tmp_path)
        lock = LeaderLock(client, 5, fence.read)
        assert lock.wait(threading.Event())
        fence.advance(lock.epoch)
        epochs.append(lock.epoch)
        lock.release()
        client.flushall()
    assert epochs == [1, 2, 3]
    assert not client.exists(keys.TRAINER_LOCK)
    client.close()
