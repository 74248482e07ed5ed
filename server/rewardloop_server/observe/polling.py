"""What is looked at now and then rather than counted as it happens; each runs until cancelled."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from redis.asyncio import Redis

from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.observe.backlog import read_backlog
from rewardloop_server.observe.metrics import NOT_KNOWN, ServerMetrics


class HasGauges(Protocol):
    def set_gauges(self) -> None:
        """Set the gauges to what is now."""


async def poll_loop_lag(metrics: ServerMetrics, every_s: float = 0.1) -> None:
    """How late the event loop wakes a sleeper: anything that blocks it shows here."""
    while True:
        due = time.monotonic() + every_s
        await asyncio.sleep(every_s)
        metrics.event_loop_lag_seconds.observe(max(0.0, time.monotonic() - due))


async def poll_queues(*queues: HasGauges, every_s: float = 0.5) -> None:
    """How full they are, and how long they make wait."""
    while True:
        for queue in queues:
            queue.set_gauges()
        await asyncio.sleep(every_s)


async def poll_stream(metrics: ServerMetrics, redis: Redis, every_s: float = 2.0) -> None:
    """The feedback stream, while Redis answers."""
    gauges = (metrics.stream_length, metrics.stream_pending, metrics.stream_lag_seconds, metrics.dead_letters)
    while True:
        try:
            backlog = await read_backlog(redis)
        except RewardloopError:
            metrics.redis_up.set(0)
            for gauge in gauges:
                gauge.set(NOT_KNOWN)
        else:
            metrics.redis_up.set(1)
            figures = (backlog.length, backlog.pending, backlog.lag_s, backlog.dead)
            for gauge, figure in zip(gauges, figures, strict=True):
                gauge.set(figure)
        await asyncio.sleep(every_s)


async def poll_redis(metrics: ServerMetrics, redis: Redis, every_s: float = 2.0) -> None:
    """Whether Redis answers; `poll_stream` says so too."""
    while True:
        try:
            with redis_errors():
                await redis.ping()
        except RewardloopError:
            metrics.redis_up.set(0)
        else:
            metrics.redis_up.set(1)
        await asyncio.sleep(every_s)
