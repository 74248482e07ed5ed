"""Builds the OperationsService from the parts of a serving process."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from rewardloop.formats.store import ModelStore
from rewardloop_server.calls.replication import Replication
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.operations.dead_letters import DeadLetters
from rewardloop_server.operations.published import Published
from rewardloop_server.operations.servicer import OperationsServicer
from rewardloop_server.operations.status import Host, LoopStatus, Pointers
from rewardloop_server.operations.traffic import Measured, Series, own_series


def operations_servicer(
    hosts: Mapping[str, Host],
    store: ModelStore,
    pointer: Pointers,
    redis: Redis,
    metrics: ServerMetrics,
    replicated: Replication,
    has_policy: bool,
    series: Series | None = None,
) -> OperationsServicer:
    """Return the service of a process that serves these reward models.

    ``has_policy`` says that it knows a policy worker. ``series`` are what the service has answered, by default this
    process alone.
    """
    published, letters = Published(redis, replicated), DeadLetters(redis, replicated)
    measured = Measured(metrics, own_series(metrics) if series is None else series)
    status = LoopStatus(hosts, has_policy, store, pointer, redis, published, letters, measured)
    return OperationsServicer(status, published, letters, store.reports)
