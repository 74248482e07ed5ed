"""Polls what no event changes, such as the age of a queue. Each function runs until cancelled."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from redis.asyncio import Redis

from rewardloop_server.calls.errors import RewardloopError
from rewardloop_server.calls.redis_link import redis_errors
from rewardloop_server.observe.backlog import read_backlog, read_remembered
from rewardloop_server.observe.metrics import NOT_KNOWN, ServerMetrics


class HasGauges(Protocol):
    """Something whose gauges must be set from time to time."""

    def set_gauges(self) -> None:
        """Set the gauges to the present values."""


async def poll_loop_lag(metrics: ServerMetrics, every_s: float = 0.1) -> None:
    """Measure how late the event loop wakes a sleeping task. Anything that blocks the loop shows here."""
    while True:
        due = time.monotonic() + every_s
        await asyncio.sleep(every_s)
        metrics.event_loop_lag_seconds.observe(max(0.0, time.monotonic() - due))


async def poll_queues(*queues: HasGauges, every_s: float = 0.5) -> None:
    """Set the gauges of queues: how full they are, and how long groups wait in them."""
    while True:
        for queue in queues:
            queue.set_gauges()
        await asyncio.sleep(every_s)


async def poll_stream(metrics: ServerMetrics, redis: Redis, every_s: float = 2.0) -> None:
    """Set the gauges of the feedback stream and of remembered ids, and whether Redis answers."""
    gauges = (
        *(metrics.stream_length, metrics.stream_pending, metrics.stream_lag_seconds, metrics.dead_letters),
        *(metrics.remembered_ids, metrics.remembered_ids_seconds),
    )
    while True:
        try:
            backlog, remembered = await read_backlog(redis), await read_remembered(redis)
        except RewardloopError:
            metrics.redis_up.set(0)
            for gauge in gauges:
                gauge.set(NOT_KNOWN)
        else:
            metrics.redis_up.set(1)
            figures = (
                *(backlog.length, backlog.pending, backlog.lag_s, backlog.dead),
                *(remembered.ids, remembered.reach_s),
            )
            for gauge, figure in zip(gauges, figures, strict=True):
                gauge.set(figure)
        await asyncio.sleep(every_s)


async def poll_redis(metrics: ServerMetrics, redis: Redis, every_s: float = 2.0) -> None:
    """Set the gauge that says whether Redis answers, for a process without `poll_stream`."""
    while True:
        try:
            with redis_errors():
                await redis.ping()
        except RewardloopError:
            metrics.redis_up.set(0)
        else:
            metrics.redis_up.set(1)
        await asyncio.sleep(every_s)
