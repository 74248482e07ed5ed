"""Real Redis and real gRPC for the tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.grpc_servers import Serve, serving

from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.observe.metrics import ServerMetrics


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the shared, emptied redis-server."""
    client = connect_redis(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def fresh_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A redis-server of this test alone, which may be killed and started again."""
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics()


@pytest.fixture
def serve(metrics: ServerMetrics) -> Serve:
    """``serve((add_to_server, servicer), ...)``: a channel to a server with them behind the interceptor."""

    return functools.partial(serving, metrics)
