"""Measures the time from a signal to the first request that is answered by a version which learned from it."""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.asyncio import Redis

from rewardloop.formats import keys
from rewardloop.formats.store import Manifest
from rewardloop_server.calls.redis_link import REDIS_FAILURES
from rewardloop_server.observe.metrics import ServerMetrics

log = structlog.get_logger()


class Freshness:
    """Measures each version once across all replicas, when it first answers a request."""

    def __init__(self, redis: Redis, metrics: ServerMetrics) -> None:
        self._redis = redis
        self._metrics = metrics
        self._answered: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def answered(self, manifest: Manifest) -> None:
        """Note that this version has just answered a request. This is cheap after the version's first time."""
        if manifest.digest in self._answered:
            return
        self._answered.add(manifest.digest)
        if manifest.data is not None and manifest.data.arrivals:
            task = asyncio.create_task(self._observe(manifest, time.time()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _observe(self, manifest: Manifest, now: float) -> None:
        try:
            is_first = await self._redis.set(keys.FIRST_SERVED + manifest.digest, f"{now:.3f}", nx=True)
        except REDIS_FAILURES as error:
            log.warning("freshness not recorded", version=manifest.version, error=str(error))
            return
        if is_first and manifest.data is not None:
            for arrival in manifest.data.arrivals:
                self._metrics.feedback_to_live_seconds.observe(max(0.0, now - arrival))
