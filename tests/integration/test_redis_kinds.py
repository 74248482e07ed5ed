"""Redis behind sentinels, as a cluster, and with TLS and an ACL user: from the server's side and from the trainer's."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.intakes import signals
from support.redis_processes import cluster, cluster_with_replicas, sentinels, tls_with_acl, until
from support.signals import choice

from rewardloop.formats import keys
from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.formats.storing.active import Active, Share
from rewardloop.v1 import policy_pb2
from rewardloop_server.calls.errors import RedisUnavailable
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import AUTO, ReplicaRules, Replication
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.observe.durability import redis_state
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_trainer.archive import redis_link
from rewardloop_trainer.archive.consume import Consumer, ConsumerSettings
from rewardloop_trainer.archive.leader import LeaderLock
from rewardloop_trainer.archive.ledger import Ledger
from rewardloop_trainer.metrics import TrainerMetrics


async def use_everything(url: str) -> None:
    """Each command that the serving processes send."""
    redis = connect_redis(url)
    kind = parse_redis_url(url).kind
    replication = Replication(redis, kind, ReplicaRules(AUTO))
    stream, log = FeedbackStream(redis, 60, replication=replication), GenerationLog(redis, 60)
    pointer = ActivePointer(redis, replication=replication)
    deadline = time.monotonic() + 30
    while not await stream.is_reachable():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    places = await stream.append(signals(*(choice(i) for i in range(250))))
    assert not any(place.is_duplicate for place in places)
    assert (await stream.append(signals(choice(3))))[0].is_duplicate
    assert await stream.length() == 250
    await stream.bury(choice(900).SerializeToString(), "a test")
    await log.put(policy_pb2.Generation(generation_id="g"))
    assert set(await log.get(["g", "h"])) == {"g"}
    await pointer.initialise("reward", "1")
    await pointer.move("reward", "2", "better")
    assert await pointer.assign("reward", "canary", Share("3", 0.1), "a test")
    assert await pointer.read("reward") == Active("2", ("1",), canary=Share("3", 0.1))
    assert await pointer.move_back("reward", "2", "1", "worse")
    state = await redis_state(redis, kind)
    assert state.durability in ("always", "everysec", "not_appended"), "of a user who may not ask, INFO alone tells"
    assert state.replicas is not None
    await redis.aclose()


@contextmanager
def consuming(url: str, archive: Path) -> Iterator[Consumer]:
    """A trainer's consumer and leader's lock."""
    client, stop = redis_link.connect_redis(url), threading.Event()
    lock = LeaderLock(client, ttl_s=5)
    assert lock.wait(stop)
    consumer = Consumer(
        client, Ledger(archive), TrainerMetrics(), ConsumerSettings(flush_age_s=0.05, maintain_every_s=0.2)
    )
    failures: list[BaseException] = []

    def run() -> None:
        try:
            consumer.run(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield consumer
    finally:
        stop.set()
        thread.join()
        lock.release()
        client.close()
    assert failures == []


def archived(archive: Path) -> list[str]:
    return sorted(Ledger(archive, writable=False).event_ids())


def drained(consumer: Consumer) -> Callable[[], bool]:
    return lambda: consumer.drained()


@pytest.mark.parametrize("kind", [cluster, tls_with_acl])
def test_server_and_trainer_work_over(kind: Any, tmp_path: Path) -> None:
    with kind(tmp_path / "redis") as url:
        asyncio.run(use_everything(url))
        client: Any = redis_link.connect_redis(url)
        client.xadd(keys.FEEDBACK_STREAM, {"event": b"no signal"})
        with consuming(url, tmp_path / "ledger") as consumer:
            until(drained(consumer))
            until(lambda: client.xlen(keys.FEEDBACK_STREAM) == 0)  # what is archived is trimmed
        assert archived(tmp_path / "ledger") == sorted(f"e{i}" for i in range(250))
        assert client.xlen(keys.DEAD_LETTERS) == 2
        client.close()


def test_cluster_acknowledges_what_its_replicas_have(tmp_path: Path) -> None:
    with cluster_with_replicas(tmp_path / "redis") as (url, replicas):
        asyncio.run(use_everything(url))

        async def record_without_replicas() -> None:
            redis = connect_redis(url)
            replication = Replication(redis, "cluster", ReplicaRules(AUTO, timeout_ms=200))
            stream = FeedbackStream(redis, 60, replication=replication)
            await stream.append(signals(choice(1000)))
            for replica in replicas:
                assert replica.process is not None
                replica.process.send_signal(signal.SIGSTOP)
            for _ in range(2):  # new, and known
                with pytest.raises(RedisUnavailable):
                    await stream.append(signals(choice(1001)))
            for replica in replicas:
                assert replica.process is not None
                replica.process.send_signal(signal.SIGCONT)
            assert (await stream.append(signals(choice(1001))))[0].is_duplicate
            await redis.aclose()

        asyncio.run(record_without_replicas())


def test_user_without_rights_is_told_apart_from_a_bug(tmp_path: Path) -> None:
    with tls_with_acl(tmp_path / "redis") as url:

        async def call(wrong: str) -> None:
            redis = connect_redis(wrong)
            with pytest.raises(RedisUnavailable):
                await ActivePointer(redis).read("reward")
            await redis.aclose()

        until(lambda: bool(redis_link.connect_redis(url).ping()))
        asyncio.run(call(url.replace("s3cret", "wrong")))
        asyncio.run(call(url.partition("?")[0]))  # no certificate of the authority


def test_signals_and_pointer_outlive_a_failover(tmp_path: Path) -> None:
    with sentinels(tmp_path / "redis") as group:

        async def record_through_a_failover() -> tuple[list[int], float]:
            redis = connect_redis(group.url)
            stream, pointer = FeedbackStream(redis, 60), ActivePointer(redis)
            await pointer.move("reward", "4", "before")
            acknowledged, refused_at, gap = [], 0.0, 0.0
            for i in range(400):
                if i == 200:
                    replicated = await redis.wait(1, 5000)  # type: ignore[misc]
                    assert replicated == 1
                    assert group.master.process is not None
                    group.master.process.send_signal(signal.SIGKILL)
                while True:
                    try:
                        await asyncio.wait_for(stream.append(signals(choice(i))), 30)
                        break
                    except RedisUnavailable:
                        refused_at = refused_at or time.monotonic()
                        await asyncio.sleep(0.05)
                acknowledged.append(i)
                if refused_at and not gap:
                    gap = time.monotonic() - refused_at
            assert await pointer.read("reward") == Active("4", ())
            await redis.aclose()
            return acknowledged, gap

        with consuming(group.url, tmp_path / "ledger") as consumer:
            acknowledged, gap = asyncio.run(record_through_a_failover())
            assert gap > 0, "the master was killed and no call was refused"
            until(drained(consumer))
        print(f"no master for {gap:.1f} s")
        assert archived(tmp_path / "ledger") == sorted(f"e{i}" for i in acknowledged)
