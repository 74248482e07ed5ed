"""The connection to Redis. Its timeouts are short, so that no RPC hangs on it; its errors become callers' errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterError,
    ConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from rewardloop.formats.redis_url import parse_redis_url
from rewardloop_server.calls.errors import RedisUnavailable, RewardloopError, StoreFull

_CONNECT_TIMEOUT_S = 2.0
_OPERATION_TIMEOUT_S = 2.0
_MAX_CONNECTIONS = 64

# What redis-py may raise if there is no Redis at the other end, or something else answers there.
REDIS_FAILURES = (RedisError, RedisClusterException, OSError, ValueError, TypeError, LookupError, AttributeError)

# These codes are looked for anywhere in an error's text, because an error within a script begins with other words.
_NOT_READY = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "NOREPLICAS", "BUSY Redis")


def connect_redis(url: str) -> Redis:
    """Return a client that connects when it is first used.

    Its calls belong into `redis_errors`. Raises InvalidRedisUrl.
    """
    address = parse_redis_url(url)
    common: dict[str, Any] = {
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "socket_timeout": _OPERATION_TIMEOUT_S,
        # After a restart of Redis every pooled connection is dead, so a command is tried once more if its connection is
        # lost. It is not tried again after a timeout.
        "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
    }
    if address.kind == "cluster":
        cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            max_connections=_MAX_CONNECTIONS,
            require_full_coverage=False,  # feedback goes on while the slots of other keys have no server
            **common,
            **address.credentials(),
        )
        return cast(Redis, cluster)  # the commands that the server uses are the same
    if address.kind == "sentinel":
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.hosts,
            sentinel_kwargs={
                "socket_connect_timeout": _CONNECT_TIMEOUT_S / 2,
                "socket_timeout": _OPERATION_TIMEOUT_S / 2,
                **address.sentinel_credentials(),
            },
            **common,
            **address.credentials(),
        )
        return cast(Redis, sentinel.master_for(address.service, db=address.db, max_connections=8 * _MAX_CONNECTIONS))
    where: dict[str, Any] = {"path": address.path, "connection_class": UnixDomainSocketConnection}
    if not address.path:
        host, port = address.hosts[0]
        where = {"host": host, "port": port}
    credentials = address.credentials()
    if credentials.pop("ssl", False):
        where["connection_class"] = SSLConnection
    pool = BlockingConnectionPool(
        max_connections=_MAX_CONNECTIONS,
        timeout=_OPERATION_TIMEOUT_S,
        db=address.db,
        **common,
        **where,
        **credentials,
    )
    return Redis.from_pool(pool)


def script_text(package: str, name: str) -> str:
    """Return the Lua script ``name`` that lies in the folder of ``package``."""
    return resources.files(package).joinpath(name).read_text("utf-8")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translate the errors of Redis calls in the block into RedisUnavailable or StoreFull. An error of a bug passes.

    Code that parses a reply belongs into the block too, because a reply of an unexpected form means that something
    else than Redis answers.
    """
    try:
        yield
    except REDIS_FAILURES as error:
        known = translated(error)
        if known is None:
            raise
        raise known from error
    finally:
        # redis-py writes within asyncio.wait_for, which now and then loses a cancellation on Python 3.11. Without this
        # a cancelled task might ask Redis for ever.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


def translated(error: Exception) -> RewardloopError | None:
    """Return the error that a caller gets for an error of Redis, or None if the error is a bug of this server."""
    if isinstance(error, MaxConnectionsError):
        return RedisUnavailable("every connection to Redis is in use")
    if isinstance(error, AuthenticationError | NoPermissionError):
        return RedisUnavailable("Redis refuses this server's user")
    # AskError is also the base of MovedError, which is raised when a slot keeps moving.
    if isinstance(
        error,
        ConnectionError
        | TimeoutError
        | ReadOnlyError
        | ClusterError
        | RedisClusterException
        | TryAgainError
        | AskError
        | OSError,
    ):
        return RedisUnavailable("Redis does not answer")
    if isinstance(error, InvalidResponse | ValueError | TypeError | LookupError | AttributeError):
        return RedisUnavailable("what answers at Redis's address is not Redis")
    if isinstance(error, ResponseError):
        text = str(error)
        # Redis 6 wraps what happened within a script in an error of the script.
        if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
            return StoreFull("Redis is at its memory limit")
        if "MISCONF" in text:
            return StoreFull("Redis cannot write to its disk")
        if any(code in text for code in _NOT_READY):
            return RedisUnavailable("Redis is not ready yet")
        if "NOPERM" in text or "NOAUTH" in text:
            return RedisUnavailable("Redis refuses this server's user")
    return None
