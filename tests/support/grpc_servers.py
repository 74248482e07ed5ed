"""Real grpc.aio servers for tests, behind the project's interceptor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.observe.metrics import ServerMetrics

Serve = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]


@asynccontextmanager
async def serving(
    metrics: ServerMetrics, *services: tuple[Any, Any], address: str = "127.0.0.1:0"
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of ``services``: pairs of a generated add_..._to_server and its servicer."""
    server = grpc.aio.server(interceptors=[RewardloopInterceptor(metrics)], options=[("grpc.so_reuseport", 0)])
    for add, servicer in services:
        add(servicer, server)
    port = server.add_insecure_port(address)
    await server.start()
    target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        yield channel
    await server.stop(None)
