"""A replica that lags becomes the master: what was acknowledged is there, or the call was refused."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis
from support.grpc_servers import serving
from support.intakes import intake_of, signals
from support.redis_processes import Sentinels, sentinels, until
from support.signals import choice
from support.statuses import failure, reason_of, retry_ms_of

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.formats.storing.active import Active
from rewardloop.v1 import feedback_pb2, feedback_pb2_grpc
from rewardloop_server.calls.errors import RedisUnavailable
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import AUTO, ReplicaRules, Replication
from rewardloop_server.calls.validate import Limits
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import FeedbackServicer, fill_in
from rewardloop_server.feedback.spool import Spool
from rewardloop_server.feedback.stream import Appended, FeedbackStream
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.versions.pointer import ActivePointer

SIGNALS = 160
# More than the sockets between master and replica hold, which a replica that is stopped reads later.
BEYOND_SOCKETS = 24 * 2**20


def replicated(redis: Redis, replicas: int = AUTO) -> Replication:
    return Replication(redis, "sentinel", ReplicaRules(replicas, timeout_ms=300))


@asynccontextmanager
async def connected(group: Sentinels) -> AsyncIterator[Redis]:
    redis = connect_redis(group.url)
    yield redis
    await redis.aclose()


async def fail_over(group: Sentinels, redis: Redis) -> None:
    """Kill the master, let the replica run on, and return once it is the master."""
    assert group.replica.process is not None
    group.master.kill()
    group.replica.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(until, lambda: group.master_port() == group.replica.port)
    await asyncio.to_thread(until, lambda: _is_master(group))
    await until_reachable(redis)


def _is_master(group: Sentinels) -> bool:
    with group.replica.client() as client:
        return bool(client.info("replication")["role"] == "master")


async def until_reachable(redis: Redis) -> None:
    for _ in range(600):
        if await FeedbackStream(redis, 60).is_reachable():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("Redis does not come back")


async def let_lag(group: Sentinels, redis: Redis) -> None:
    """Stop the replica, and write what it must read before anything later."""
    assert group.replica.process is not None
    group.replica.process.send_signal(signal.SIGSTOP)
    for _ in range(BEYOND_SOCKETS // 2**20):
        await redis.set("rewardloop:{feedback}:filling", bytes(2**20), ex=60)


@pytest.mark.parametrize("replicas", [AUTO, 0])
def test_signals_that_a_lagging_replica_lacks_were_refused(replicas: int, tmp_path: Path) -> None:
    """With 0 replicas, which gives the promise up, the same failover loses what was acknowledged."""

    async def record(group: Sentinels) -> tuple[list[int], int, set[bytes]]:
        acknowledged, refused = [], 0
        async with connected(group) as redis:
            stream = FeedbackStream(redis, 60, replication=replicated(redis, replicas))
            for i in range(SIGNALS):
                if i == SIGNALS // 10:
                    await let_lag(group, redis)
                try:
                    await stream.append(signals(choice(i)))
                    acknowledged.append(i)
                except RedisUnavailable:
                    refused += 1
                    if refused > 5:
                        break
            # A repeated call is answered as a duplicate: it must wait for the first one's replication too.
            if refused:
                with pytest.raises(RedisUnavailable):
                    await stream.append(signals(choice(i)))
            await fail_over(group, redis)
            there = {fields[keys.ID_FIELD.encode()] for _, fields in await redis.xrange(keys.FEEDBACK_STREAM)}
        return acknowledged, refused, there

    with sentinels(tmp_path / "redis") as group:
        acknowledged, refused, there = asyncio.run(record(group))
    lost = [i for i in acknowledged if f"e{i}".encode() not in there]
    print(f"replicas={replicas}: acknowledged {len(acknowledged)}, refused {refused}, lost {len(lost)}")
    if replicas == AUTO:
        assert lost == []
        assert refused > 0
    else:
        assert lost, "the failover lost nothing: this test tests nothing"


def test_rollback_outlives_a_failover_to_a_replica_that_lacks_it(tmp_path: Path) -> None:
    async def roll_back(group: Sentinels) -> None:
        copies = ModelStore(tmp_path / "models").pointers
        async with connected(group) as redis:
            pointer = ActivePointer(redis, copies, replicated(redis))
            for version in ("1", "2"):
                await pointer.move("reward", version, "")
            await let_lag(group, redis)
            for _ in range(2):  # the second finds the pointer where the first put it, and has no more to say for it
                with pytest.raises(RedisUnavailable):
                    await pointer.move_back("reward", "2", "1", "worse")
            await fail_over(group, redis)
            raw = await redis.hget(keys.ACTIVE, "reward")
            assert raw is not None
            assert Active.from_json(raw) == Active("2", ("1",)), "the replica did not lag: this test tests nothing"
            after = ActivePointer(redis, copies, Replication(redis))  # of a server that has just started
            assert await after.read("reward") == Active("1", (), is_held=True)
            assert Active.from_json(await redis.hget(keys.ACTIVE, "reward") or b"").version == "1"

    with sentinels(tmp_path / "redis") as group:
        asyncio.run(roll_back(group))


def test_caller_is_told_to_repeat_what_no_replica_has(tmp_path: Path) -> None:
    """UNAVAILABLE with a time to try again; with a spool the signal is kept, and reaches the stream once."""

    async def record(group: Sentinels) -> None:
        async with connected(group) as redis:
            metrics = ServerMetrics()
            stream = FeedbackStream(redis, 60, replication=replicated(redis))
            generations = GenerationLog(redis, 60)
            taking = intake_of(stream, generations, metrics)
            servicer = FeedbackServicer(taking, Limits(), metrics, max_events=10)
            assert group.replica.process is not None
            group.replica.process.send_signal(signal.SIGSTOP)
            async with serving(metrics, (feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, servicer)) as channel:
                stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
                request = feedback_pb2.RecordRequest(event=choice(1))
                request.event.ClearField("arrival_time")  # the server sets it
                refusal = await failure(stub.Record(request))
                assert (refusal.code(), reason_of(refusal)) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
                assert "0 of 1 replicas" in str(refusal.details())
                assert retry_ms_of(refusal) == 500
                group.replica.process.send_signal(signal.SIGCONT)
                reply = await repeated(lambda: stub.Record(request), taking)
                assert reply.duplicate

            spool = Spool(tmp_path / "spool")
            fill = functools.partial(fill_in, limits=Limits())
            intake = Intake(stream, generations, fill, metrics, spool, 2**20)
            await intake.open()
            group.replica.process.send_signal(signal.SIGSTOP)
            assert (await intake.append(signals(choice(2))))[0] == Appended("", is_duplicate=False)
            group.replica.process.send_signal(signal.SIGCONT)
            drain = asyncio.create_task(intake.drain())
            await asyncio.to_thread(until, lambda: spool.is_empty)
            drain.cancel()
            await intake.close()
            assert await stream.length() == 2

    with sentinels(tmp_path / "redis") as group:
        asyncio.run(record(group))


async def repeated(call: Callable[[], Awaitable[Any]], taking: Intake) -> Any:
    for _ in range(100):
        await taking.is_reachable()  # as health does all the time
        try:
            return await call()
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)
    raise AssertionError("it is refused for ever")
