"""The state of an earlier release (26 November 2026) is taken over by today's processes.

`support/earlier_release.tar.xz` holds what that release's own code wrote: Redis's append-only file, a store with three
reward versions of which the second is active after a rollback, a ledger with 30 signals, ten more in the stream and one
dead letter, and the trainer's work directory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_py
from support.processes import serving
from support.redis_processes import until
from support.trainers import Archiver

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active
from rewardloop_client import Feedback, NothingToRollBack, RewardloopClient
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.rounds.live_pointer import live_version
from rewardloop_trainer.rounds.trainer_state import StateFile

STATE = Path(__file__).parents[1] / "support" / "earlier_release.tar.xz"


@dataclass
class Earlier:
    directory: Path
    redis: EmbeddedRedis

    @property
    def store(self) -> ModelStore:
        return ModelStore(self.directory / "models")

    def client(self) -> redis_py.Redis:
        return redis_py.Redis.from_url(self.redis.url)

    def pointer(self) -> Active:
        with self.client() as client:
            return Active.from_json(client.hget(keys.ACTIVE, "reward") or b"")


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Earlier]:
    with tarfile.open(fileobj=io.BytesIO(STATE.read_bytes())) as archive:
        archive.extractall(tmp_path, filter="data")
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield Earlier(tmp_path, server)
    server.stop()


def test_server_serves_what_was_active_and_writes_the_copy(earlier: Earlier) -> None:
    assert earlier.pointer() == Active("2", ("1",), shadow=earlier.pointer().shadow)
    assert earlier.pointer().epoch == 0
    with (
        serving(earlier.directory / "models", earlier.redis.url, earlier.directory / "serve.log") as server,
        RewardloopClient(server.address, timeout_s=30) as client,
    ):
        assert client.get_version("reward").version == "2"
        assert client.score("alpha", ["beta"]).model_version.version == "2"
        until(lambda: (earlier.store.pointers.read("reward") or Active("")).epoch == 1)
        assert earlier.pointer().epoch == 1
        assert earlier.pointer().promoted_by == 1, "the epoch of the leader that promoted last is known"
        assert client.rollback("reward", expected_version="2").version.version == "1"
        with pytest.raises(NothingToRollBack):
            client.rollback("reward")
        # A signal that the earlier release took is recognised, archived or not.
        for number in (3, 35):
            signal = Feedback.choice(prompt="q", responses=["a", "b"], chosen=0, rejected=1, event_id=f"e{number}")
            assert client.record(signal).duplicate
    assert earlier.store.pointers.read("reward") == Active("1", (), is_held=True)


def test_trainer_archives_what_waited_and_leads_on(earlier: Earlier) -> None:
    trainer = Archiver(earlier.directory, earlier.redis.url, "trainer", "--once")
    assert trainer.start().wait(120) == 0, trainer.log
    ledger = Ledger(earlier.directory / "ledger", writable=False)
    assert sorted(ledger.event_ids()) == sorted(f"e{i}" for i in range(40))
    assert Fence(earlier.directory / "ledger").read() == 2
    state = StateFile(earlier.directory / "work").read().of("reward")
    assert state.round is not None
    assert (state.rounds, state.round.phase, state.round.version) == (1, "published", "3")
    with earlier.client() as client:
        assert live_version(client, earlier.store, "reward") == "2"
        assert client.xlen(keys.DEAD_LETTERS) == 1
