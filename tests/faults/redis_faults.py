"""Faults of Redis and of the network before it."""

from __future__ import annotations

import os
import shutil
import signal
import time

from faults.table import AWAY, fault
from faults.world import World, until
from support.tcp_proxy import Toxic

_HOLD_S = 1.0
_FULL = AWAY | {"STORE_FULL"}


def _through(world: World, toxic: Toxic, hold_s: float = _HOLD_S) -> None:
    """Connections that are open feel it, too."""
    world.proxy.toxic = toxic
    time.sleep(hold_s)
    world.proxy.heal()


@fault("Redis answers 0.3 s late")
def late(world: World) -> None:
    _through(world, Toxic(latency_s=0.3))


@fault("Redis answers 3 s late, later than is waited for")
def too_late(world: World) -> None:
    _through(world, Toxic(latency_s=3.0), hold_s=4.0)


@fault("Redis accepts connections and never answers (black hole)")
def black_hole(world: World) -> None:
    _through(world, Toxic(swallow=True), hold_s=4.0)


@fault("Redis's port is closed")
def refused(world: World) -> None:
    world.proxy.refuse()
    time.sleep(_HOLD_S)
    world.proxy.heal()


@fault("connections to Redis are reset")
def cut(world: World) -> None:
    for _ in range(5):
        world.proxy.cut()
        time.sleep(0.2)


@fault("connections to Redis are cut in the middle of an answer")
def cut_in_an_answer(world: World) -> None:
    _through(world, Toxic(cut_after=17), hold_s=2.0)


@fault("Redis half-closes connections after an answer")
def half_close(world: World) -> None:
    _through(world, Toxic(half_close=True))


@fault("Redis answers with noise")
def noise(world: World) -> None:
    for garbage in (b"\x00\xffHTTP/1.1 400 Bad Request\r\n\r\n", b"$99999\r\n", b"*-7\r\n:x\r\n", b"+OK\r\n" * 3):
        world.proxy.toxic = Toxic(garbage=garbage)
        time.sleep(0.3)
        world.proxy.heal()


@fault("the line to Redis carries 2 kB/s")
def narrow(world: World) -> None:
    _through(world, Toxic(bytes_a_second=2_000.0), hold_s=2.0)


@fault("Redis comes and goes every 0.2 s")
def flapping(world: World) -> None:
    for _ in range(5):
        world.proxy.refuse()
        time.sleep(0.2)
        world.proxy.heal()
        time.sleep(0.2)


@fault("Redis is killed (kill -9) and started again")
def killed(world: World) -> None:
    world.redis.kill()
    time.sleep(_HOLD_S)
    world.redis.start()


@fault("Redis stands still (SIGSTOP) for 3 s")
def stopped(world: World) -> None:
    assert world.redis.pid is not None
    os.kill(world.redis.pid, signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(world.redis.pid, signal.SIGCONT)


@fault("Redis is at its memory limit (noeviction)", feedback=_FULL)
def full(world: World) -> None:
    with world.client() as client:
        client.config_set("maxmemory", 100_000)
        time.sleep(_HOLD_S)
        client.config_set("maxmemory", 0)


@fault("Redis refuses writes: it is a replica now", feedback=_FULL)
def replica(world: World) -> None:
    with world.client() as client:
        client.config_set("replica-serve-stale-data", "yes")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(_HOLD_S)
        client.execute_command("REPLICAOF", "NO", "ONE")


@fault("Redis comes back without its data: stream, group, pointer and lock are gone (the ledger had the signals)")
def emptied(world: World) -> None:
    world.callers.pause_recording()
    until(world.is_archived)
    world.redis.kill()
    for file in ("appendonly.aof", "dump.rdb", "appendonlydir"):
        path = world.redis.data_dir / file
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    world.redis.start()
    world.callers.resume_recording()
    for server in world.servers:
        until(lambda server=server: world.active_at(server) == "1")  # type: ignore[misc]
    with world.client() as client:
        until(lambda: bool(client.exists("rewardloop:{models}:active")))


@fault("the trainer's consumer group is deleted")
def no_group(world: World) -> None:
    with world.client() as client:
        client.xgroup_destroy("rewardloop:{feedback}:events", "trainer")
    time.sleep(_HOLD_S)


@fault("the pointer names a version that is not there")
def pointer_to_nothing(world: World) -> None:
    with world.client() as client:
        before = client.hget("rewardloop:{models}:active", "reward")
        assert isinstance(before, bytes)
        client.hset("rewardloop:{models}:active", "reward", '{"version": "999", "previous": []}')
        time.sleep(_HOLD_S)
        client.hset("rewardloop:{models}:active", "reward", before)
