"""Real Redis and real gRPC for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_server.interceptor import RewardloopInterceptor
from rewardloop_server.metrics import ServerMetrics
from rewardloop_server.redis_link import connect


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the shared, emptied redis-server."""
    client = connect(redis_url)
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


Serve = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]


@pytest.fixture
def serve(metrics: ServerMetrics) -> Serve:
    """``serve((add_to_server, servicer), ...)``: a channel to a server with them behind the interceptor."""

    @asynccontextmanager
    async def start(*services: tuple[Any, Any], address: str = "127.0.0.1:0") -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server(interceptors=[RewardloopInterceptor(metrics)], options=[("grpc.so_reuseport", 0)])
        for add, servicer in services:
            add(servicer, server)
        port = server.add_insecure_port(address)
        await server.start()
        target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(target) as channel:
            yield channel
        await server.stop(None)

    return start
