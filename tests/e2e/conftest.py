"""A real redis-server for the processes under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rewardloop_local.redis_server import EmbeddedRedis


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server a module."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def empty_redis_url(redis_url: str) -> str:
    """The module's server, emptied for this test."""
    redis.Redis.from_url(redis_url).flushall()
    return redis_url
