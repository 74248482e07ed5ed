"""The trainer's connection to Redis: one server, a master that sentinels name, or a cluster."""

from __future__ import annotations

import threading
from typing import Any, cast

import redis
import structlog
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from rewardloop.formats.redis_url import parse_redis_url

log = structlog.get_logger()

_TIMEOUT_S = 5.0

# What a client raises while Redis is away or fails over.
REDIS_FAILURES = (redis.RedisError, RedisClusterException)


def connect_redis_until(url: str, stop: threading.Event) -> redis.Redis | None:
    """Connect as `connect_redis` does, and wait for a cluster that is away. Returns None if ``stop`` was set first."""
    delay = 0.5
    while not stop.is_set():
        try:
            return connect_redis(url)
        except REDIS_FAILURES as error:
            log.warning("Redis does not answer", error=str(error), retry_in_s=delay)
            stop.wait(delay)
            delay = min(2 * delay, 10.0)
    return None


def connect_redis(url: str) -> redis.Redis:
    """Return a client that connects when it is first used; a client of a cluster connects at once.

    Raises:
        InvalidRedisUrl: If the URL names no Redis.
        redis.RedisError, RedisClusterException: If a cluster does not answer.
    """
    address = parse_redis_url(url)
    common: dict[str, Any] = {
        "socket_timeout": _TIMEOUT_S,
        "socket_connect_timeout": _TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
    if address.kind == "cluster":
        cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],  # type: ignore[no-untyped-call]
            require_full_coverage=False,
            **common,
            **address.credentials(),
        )
        return cast(redis.Redis, cluster)  # the commands that the trainer uses are the same
    if address.kind == "sentinel":
        timeouts = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(address.hosts),
            sentinel_kwargs={**timeouts, **address.sentinel_credentials()},
            **common,
            **address.credentials(),
        )
        master = sentinel.master_for(address.service, db=address.db)  # type: ignore[no-untyped-call]
        return cast(redis.Redis, master)
    if address.path:
        return redis.Redis(unix_socket_path=address.path, db=address.db, **common, **address.credentials())
    host, port = address.hosts[0]
    return redis.Redis(host=host, port=port, db=address.db, **common, **address.credentials())
