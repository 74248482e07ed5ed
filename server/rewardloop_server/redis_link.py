"""The connection to Redis: timeouts tight enough that no RPC hangs on it, and its errors as callers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterError,
    ConnectionError,
    MaxConnectionsError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from rewardloop_server.errors import RedisUnavailable, RewardloopError, StoreFull

_CONNECT_TIMEOUT_S = 2.0
_OPERATION_TIMEOUT_S = 2.0
_MAX_CONNECTIONS = 64


def connect(url: str) -> Redis:
    """A client that connects when first used; see `redis_errors` for what its calls may raise."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=_OPERATION_TIMEOUT_S,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_timeout=_OPERATION_TIMEOUT_S,
        # One more try: after a restart of Redis each pooled connection is dead. A timeout is not tried again.
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
    )
    return Redis.from_pool(pool)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translate what Redis calls in the block raise: RedisUnavailable, StoreFull, or the RedisError of a bug."""
    try:
        yield
    except RedisError as error:
        known = translated(error)
        if known is None:
            raise
        raise known from error
    finally:
        # redis-py writes within asyncio.wait_for, which loses a cancellation now and then on Python 3.11; a task that
        # is to end must not ask Redis for ever.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


def translated(error: Exception) -> RewardloopError | None:
    """The caller's error for one of Redis; None: this is a bug of ours."""
    if isinstance(error, ConnectionError | TimeoutError | ReadOnlyError | ClusterError | TryAgainError):
        busy = isinstance(error, MaxConnectionsError)
        return RedisUnavailable("every connection to Redis is in use" if busy else "Redis does not answer")
    if isinstance(error, ResponseError):
        text = str(error)
        # Within a script the error's own code comes late in the text.
        if "OOM command not allowed" in text:
            return StoreFull("Redis is at its memory limit")
        if "MISCONF" in text:
            return StoreFull("Redis cannot write to its disk")
        if "LOADING" in text or "MASTERDOWN" in text:
            return RedisUnavailable("Redis is not ready yet")
    return None
