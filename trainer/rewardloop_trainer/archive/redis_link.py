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

# What its calls may raise while Redis is away or moves.
REDIS_FAILURES = (redis.RedisError, RedisClusterException)


def connect_until(url: str, stop: threading.Event) -> redis.Redis | None:
    """As `connect`, but waits for a cluster that is away; None when ``stop`` came first."""
    delay = 0.5
    while not stop.is_set():
        try:
            return connect(url)
        except REDIS_FAILURES as error:
            log.warning("Redis does not answer", error=str(error), retry_in_s=delay)
            stop.wait(delay)
            delay = min(2 * delay, 10.0)
    return None


def connect(url: str) -> redis.Redis:
    """A client that connects when first used; to a cluster it connects here.

    Raises InvalidRedisUrl, for a cluster REDIS_FAILURES.
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
        return cast(redis.Redis, cluster)  # the commands used here are the same
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
        return redis.Redis(unix_socket_path=address.path, db=address.db, **common)
    host, port = address.hosts[0]
    return redis.Redis(host=host, port=port, db=address.db, **common, **address.credentials())
