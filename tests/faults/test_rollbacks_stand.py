"""Twenty rollbacks by a person, each followed by what might undo it; all of them stand.

Servers and trainers are the product's own parts around versions that are one small file: the pointer, the host that
follows it, the ModelService over gRPC, the trainer's lock, fence, promotion and copy of the pointer.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import redis as redis_py
from support.file_models import Weights, load, publish
from support.redis_processes import Sentinels, sentinels, until

from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active
from rewardloop.v1 import model_pb2_grpc
from rewardloop_client import FailedPrecondition, PointerMoved, RewardloopClient, Unavailable
from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import AUTO, ReplicaRules, Replication
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from rewardloop_trainer.archive.fence import Fence
from rewardloop_trainer.archive.leader import LeaderLock
from rewardloop_trainer.archive.redis_link import REDIS_FAILURES
from rewardloop_trainer.archive.redis_link import connect_redis as connect_trainer
from rewardloop_trainer.rounds.live_pointer import is_held, keep_pointers, live_version
from rewardloop_trainer.rounds.pauses import ServerAway
from rewardloop_trainer.rounds.publish import PromotionRefused, promote

pytestmark = pytest.mark.long

_LOG = "appendonlydir"  # where Redis from 7 on keeps its append-only file
GOOD, BAD, NEXT = "1", "2", "3"


class Server:
    """A serving process without its engine, in a thread of its own."""

    def __init__(self, world: World, can_write: bool = True) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._world = world
        self._can_write = can_write
        self._loop = asyncio.new_event_loop()
        self._ends = asyncio.Event()
        self.host: VersionHost[Weights] = VersionHost("reward", world.store, load, lambda *_: None)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        world.stack.callback(self.end)

    @property
    def active(self) -> str | None:
        return self.host.active.version if self.host.active else None

    def end(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ends.set)
            self._thread.join()

    async def _serve(self) -> None:
        redis = connect_redis(self._world.url)
        rules = ReplicaRules(AUTO, timeout_ms=300)
        replication = Replication(redis, parse_redis_url(self._world.url).kind, rules)
        copies = self._world.store.pointers if self._can_write else None
        pointer = ActivePointer(redis, copies, replication)
        follower = asyncio.create_task(self.host.follow(pointer, poll_s=0.02))
        server = grpc.aio.server(interceptors=[RewardloopInterceptor(ServerMetrics())])
        servicer = ModelServicer({"reward": self.host}, self._world.store, pointer, None)
        model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
        server.add_insecure_port(self.address)
        await server.start()
        await self._ends.wait()
        follower.cancel()
        await server.stop(None)
        await redis.aclose()


class Trainer:
    """A leading trainer: its lock, its fence, its copy of the pointer, and a round that has published a version."""

    def __init__(self, world: World, server: Server) -> None:
        self._world = world
        self._stop = threading.Event()
        self.redis = connect_trainer(world.url)
        self._fence = Fence(world.directory / "ledger")
        self._lock = LeaderLock(self.redis, 1.0, self._fence.read)
        assert self._lock.wait(self._stop, poll_s=0.05)
        self._fence.advance(self._lock.epoch)
        self._client = RewardloopClient(server.address, timeout_s=10, max_attempts=1)
        self._keeper = threading.Thread(target=keep_pointers, args=(self.redis, world.store, self._stop, 0.05))
        self._keeper.start()
        world.stack.callback(self.end)

    def end(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._keeper.join()
            self._lock.release()
            self._client.close()
            self.redis.close()

    def promote(self, version: str, parent: str | None) -> bool:
        """Go on with a round in phase "published". Returns whether the version was promoted."""
        for _ in range(200):
            try:
                promote(self._client, "reward", version, "a round", 10, self._lock.epoch, parent)
                return True
            except PromotionRefused:
                return False
            except ServerAway:
                pass  # tried again, as the loop does
            self._stop.wait(0.1)
        return False

    def insist(self) -> None:
        """Try in every way to bring the rejected version back: as the old round, and as one that begins now."""
        assert not self.promote(BAD, GOOD)
        assert not self.promote(BAD, None)
        held, live = self._when_redis_answers()
        assert live != BAD
        if not held:
            assert not self.promote(BAD, live)

    def _when_redis_answers(self) -> tuple[bool, str | None]:
        found: list[tuple[bool, str | None]] = []

        def ask() -> bool:
            try:
                asked = (self.redis, self._world.store, "reward")
                found.append((is_held(*asked), live_version(*asked)))
                return True
            except REDIS_FAILURES:
                return False

        until(ask)
        return found[0]


@dataclass
class World:
    """A store with three versions, a Redis, and what was started beside them."""

    directory: Path
    url: str
    stack: ExitStack
    group: Sentinels | None = None
    redis: EmbeddedRedis | None = None
    store: ModelStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = ModelStore(self.directory / "models")
        publish(self.store, f"weights {GOOD}")

    def begin(self, can_write: bool = True) -> tuple[Server, Trainer]:
        """Return a server and a trainer once the trainer has promoted the version that is to be rolled back."""
        server = Server(self, can_write)
        until(lambda: server.active == GOOD)
        for version in (BAD, NEXT):
            publish(self.store, f"weights {version}")
        trainer = Trainer(self, server)
        assert trainer.promote(BAD, GOOD)
        return server, trainer

    def roll_back(self, server: Server, expected: str | None = BAD) -> bool:
        """Roll back as a person does who does not give up. Returns whether it was acknowledged.

        A rollback that the replicas did not get in time is followed by the server. Promoting what is active then is
        how a person makes sure of it.
        """
        has_moved = False
        with RewardloopClient(server.address, timeout_s=10, max_attempts=1) as client:
            for _ in range(200):
                try:
                    if has_moved:
                        client.promote("reward", GOOD, reason="this one stays")
                    else:
                        client.rollback("reward", reason="worse", expected_version=expected)
                    return True
                except PointerMoved:
                    return False
                except Unavailable as error:
                    has_moved = has_moved or "the pointer was moved" in str(error)
                    time.sleep(0.1)
                except FailedPrecondition:
                    return False
        return False

    def client(self) -> redis_py.Redis:
        return connect_trainer(self.url)

    def lose_data(self, put_back: Path | None = None) -> None:
        """Kill Redis and start it again without its data, or with an earlier state of them."""
        assert self.redis is not None
        self.redis.kill()
        log = self.redis.data_dir / _LOG
        assert log.exists(), "the server keeps its data elsewhere: this test would lose nothing"
        shutil.rmtree(log)
        (self.redis.data_dir / "dump.rdb").unlink(missing_ok=True)
        if put_back is not None:
            shutil.copytree(put_back, log)
        self.redis.start()

    def keep_data(self) -> Path:
        assert self.redis is not None
        return shutil.copytree(self.redis.data_dir / _LOG, self.directory / "kept")


def stands(world: World, *servers: Server) -> None:
    """Check that no server follows the rejected version: neither those that run nor one that starts now."""
    for server in (*servers, Server(world)):
        until(lambda server=server: server.active not in (None, BAD))  # type: ignore[misc]
    with world.client() as client:
        until(lambda: Active.from_json(client.hget("rewardloop:{models}:active", "reward") or b"").version != BAD)
        active = Active.from_json(client.hget("rewardloop:{models}:active", "reward") or b"")
    assert BAD in active.rejected
    assert world.store.pointers.read("reward") is not None


def trainer_restarts(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    trainer.insist()
    trainer.end()
    Trainer(world, server).insist()
    stands(world, server)


def trainer_restarts_after_the_hold(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    with RewardloopClient(server.address) as client:
        client.promote("reward", GOOD, reason="this one stays")
    trainer.insist()
    trainer.end()
    again = Trainer(world, server)
    again.insist()
    assert again.promote(NEXT, GOOD), "another version may follow"
    stands(world, server)


def redis_is_emptied(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    with world.client() as client:
        client.flushall()
    trainer.insist()
    stands(world, server)


def everything_restarts_without_redis_data(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    trainer.end()
    server.end()
    world.lose_data()
    again = Server(world)
    until(lambda: again.active is not None)
    Trainer(world, again).insist()
    stands(world, again)


def servers_cannot_write_the_store(world: World) -> None:
    server, trainer = world.begin(can_write=False)
    assert world.roll_back(server)
    until(lambda: (world.store.pointers.read("reward") or Active("")).is_held)  # the trainer copies it
    trainer.end()
    server.end()
    world.lose_data()
    again = Server(world)
    until(lambda: again.active is not None)
    Trainer(world, again).insist()
    stands(world, again)


def redis_falls_back(world: World) -> None:
    server, trainer = world.begin()
    before = world.keep_data()
    assert world.roll_back(server)
    trainer.end()
    server.end()
    world.lose_data(before)
    again = Server(world)
    until(lambda: again.active is not None)
    Trainer(world, again).insist()
    stands(world, again)


def server_starts_while_redis_is_away(world: World) -> None:
    server, trainer = world.begin()
    before = world.keep_data()
    assert world.roll_back(server)
    trainer.end()
    server.end()
    assert world.redis is not None
    world.redis.kill()
    again = Server(world)
    until(lambda: again.active == GOOD)
    world.lose_data(before)
    Trainer(world, again).insist()
    stands(world, again)


def two_roll_back_at_once(world: World) -> None:
    server, trainer = world.begin()
    other = Server(world)
    until(lambda: other.active == BAD)
    with ThreadPoolExecutor(2) as threads:
        assert any(threads.map(world.roll_back, (server, other)))
    until(lambda: server.active == GOOD)
    trainer.insist()
    stands(world, server, other)


def two_roll_back_at_once_whatever_is_active(world: World) -> None:
    server, trainer = world.begin()
    other = Server(world)
    until(lambda: other.active == BAD)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda at: world.roll_back(at, expected=None), (server, other)))
    trainer.insist()
    stands(world, server, other)


def a_promotion_races_with_the_rollback(world: World) -> None:
    server, trainer = world.begin()
    other = Server(world)
    until(lambda: other.active == BAD)
    with ThreadPoolExecutor(2) as threads:
        promoted = threads.submit(trainer.promote, NEXT, BAD)
        rolled_back = threads.submit(world.roll_back, other)
    # Whoever was first, the version that the person saw is left.
    assert promoted.result() or rolled_back.result()
    with world.client() as client:
        assert Active.from_json(client.hget("rewardloop:{models}:active", "reward") or b"").version != BAD
    if not promoted.result():
        trainer.insist()
        stands(world, server, other)


def master_is_killed(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    fail_over(world)
    trainer.insist()
    stands(world, server)


def master_is_killed_and_all_restart(world: World) -> None:
    server, trainer = world.begin()
    assert world.roll_back(server)
    trainer.end()
    server.end()
    fail_over(world)
    again = Server(world)
    until(lambda: again.active is not None)
    Trainer(world, again).insist()
    stands(world, again)


def master_is_killed_while_the_replica_lags(world: World) -> None:
    """The rollback is refused until a replica has it: the person repeats it through the failover."""
    server, trainer = world.begin()
    assert world.group is not None
    assert world.group.replica.process is not None
    world.group.replica.process.send_signal(signal.SIGSTOP)
    with world.group.master.client() as client:
        for i in range(24):
            client.set(f"filling{i % 2}", bytes(2**20))
    with ThreadPoolExecutor(1) as threads:
        rolled_back = threads.submit(world.roll_back, server)
        time.sleep(1.25)
        assert not rolled_back.done()
        fail_over(world)
        assert rolled_back.result()
    trainer.insist()
    stands(world, server)


def fail_over(world: World) -> None:
    """Kill the master, let its replica run on, and start the killed one again as a replica."""
    group = world.group
    assert group is not None
    assert group.replica.process is not None
    group.master.kill()
    group.replica.process.send_signal(signal.SIGCONT)
    until(lambda: group.master_port() == group.replica.port, why=lambda: f"no failover:\n{group.log()}")
    group.master.start()
    world.stack.callback(group.master.kill)

    def has_replica() -> bool:
        # On a starved machine sentinels may take the new master for dead, too, and go back to the old one.
        (leading,) = (each for each in (group.master, group.replica) if each.port == group.master_port())
        with leading.client() as client:
            return int(client.info("replication")["connected_slaves"]) == 1

    until(has_replica, why=lambda: f"the killed master did not become a replica:\n{group.log()}")


@contextmanager
def one_redis(directory: Path) -> Iterator[World]:
    server = EmbeddedRedis(directory / "redis")
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield World(directory, server.url, stack, redis=server)


@contextmanager
def with_sentinels(directory: Path) -> Iterator[World]:
    with sentinels(directory / "redis") as group, ExitStack() as stack:
        yield World(directory, group.url, stack, group=group)


Scenario = tuple[Callable[[World], None], Callable[..., object], int]
SCENARIOS: tuple[Scenario, ...] = (
    (trainer_restarts, one_redis, 1),
    (trainer_restarts_after_the_hold, one_redis, 1),
    (redis_is_emptied, one_redis, 2),
    (everything_restarts_without_redis_data, one_redis, 2),
    (servers_cannot_write_the_store, one_redis, 1),
    (redis_falls_back, one_redis, 2),
    (server_starts_while_redis_is_away, one_redis, 1),
    (two_roll_back_at_once, one_redis, 2),
    (two_roll_back_at_once_whatever_is_active, one_redis, 1),
    (a_promotion_races_with_the_rollback, one_redis, 3),
    (master_is_killed, with_sentinels, 1),
    (master_is_killed_and_all_restart, with_sentinels, 1),
    (master_is_killed_while_the_replica_lags, with_sentinels, 2),
)


def test_twenty_of_twenty_rollbacks_stand(tmp_path: Path) -> None:
    stood, failed = 0, []
    for scenario, of_redis, times in SCENARIOS:
        for turn in range(times):
            directory = tmp_path / f"{scenario.__name__}{turn}"
            directory.mkdir()
            try:
                with of_redis(directory) as world:  # type: ignore[attr-defined]
                    scenario(world)
                stood += 1
            except AssertionError:
                failed.append(f"{scenario.__name__}: {traceback.format_exc()}")
    print(f"{stood} of {stood + len(failed)} rollbacks stand")
    assert failed == []
    assert stood == 20
