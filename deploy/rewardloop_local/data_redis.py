"""Connects to the Redis of a deployment, which is started for the time if it is an embedded one that does not run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from rewardloop_local.plan import UP_LOCK, DeploymentPlan
from rewardloop_local.redis_server import EmbeddedRedis, RedisServerError
from rewardloop_local.redis_server.door import door_of, open_door
from rewardloop_trainer.archive.redis_link import connect_redis


class NoSuchRedis(Exception):
    """Raised when a deployment's Redis cannot be used. The text is one line that says why, and what to do."""


@contextmanager
def redis_of(data: Path, redis_url: str, *, is_restored: bool = False) -> Iterator[redis.Redis]:
    """Connect to the Redis of the settings, or to the embedded one, which is started if it does not run.

    Args:
        data: The data directory of `rewardloop up` whose Redis it is, if there is no URL.
        redis_url: The URL of another one.
        is_restored: An embedded Redis may have no data yet, and must not run. Otherwise it must have data.

    Raises:
        NoSuchRedis: If the Redis is not as it must be.
    """
    if redis_url:
        with connect_redis(redis_url) as client:
            yield client
        return
    directory = DeploymentPlan(data).redis_data
    door = door_of(directory)
    if door is None and not is_restored:
        raise NoSuchRedis(f"{directory} has no embedded Redis: name --data or --redis-url")
    if door is not None and _answers(door.url):
        if is_restored:
            raise NoSuchRedis(f"a rewardloop runs on {data}: 'rewardloop down --data {data}' ends it")
        with connect_redis(door.url) as client:
            yield client
        return
    with _nothing_else_runs(data):
        try:
            server = EmbeddedRedis(directory, door=open_door(directory))
            server.start(patience_s=600.0)
        except RedisServerError as error:
            raise NoSuchRedis(str(error)) from error
        try:
            with connect_redis(server.url) as client:
                yield client
        finally:
            server.stop(grace_s=600.0)


@contextmanager
def _nothing_else_runs(data: Path) -> Iterator[None]:
    """Keep `rewardloop up` from starting on a data directory during the block. Raises NoSuchRedis if it runs there."""
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / UP_LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise NoSuchRedis(
            f"a rewardloop runs on {data}, and its Redis does not answer: 'rewardloop down --data {data}' ends it"
        ) from error
    finally:
        os.close(lock)


def _answers(url: str) -> bool:
    with connect_redis(url) as client:
        try:
            return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            return False
