"""The life of a serving process, which `rewardloop serve` and `rewardloop policy-worker` share.

open the store -> start background work and the server -> wait for a signal -> drain
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc
import structlog
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.formats.signatures import UnusableKey, trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.process.metrics_page import CannotListen, serve_metrics
from rewardloop_server.calls.replication import ReplicaRules, Replication
from rewardloop_server.calls.vocabulary import Written
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.guard.last_resort import CLOSING_S, end_after
from rewardloop_server.loading.progress import LoadingLog
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.settings import ServingSettings

log = structlog.get_logger()


def open_store(settings: ServingSettings, prog: str) -> ModelStore:
    """Return the model store. Raises SystemExit if a key that the settings trust cannot be used."""
    try:
        return ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys), watch=LoadingLog())
    except UnusableKey as error:
        raise SystemExit(f"{prog}: {error}") from error


def replication(settings: ServingSettings, redis: Redis, metrics: ServerMetrics) -> Replication:
    """Return what waits until enough replicas have what is written."""

    def unmet(what: Written) -> None:
        metrics.redis_unreplicated_total.labels(written=what).inc()

    rules = ReplicaRules(settings.redis_replicas, settings.redis_replicas_ms)
    return Replication(redis, parse_redis_url(settings.redis_url).kind, rules, unmet)


async def report_health(
    health: HealthServicer, checks: Mapping[str, Callable[[], Awaitable[bool]]], every_s: float
) -> None:
    """Keep the health of each service true until cancelled.

    Args:
        health: What is asked for health. Once it shuts down, its NOT_SERVING stays.
        checks: For each service's full name ("" is the whole process) a function that tells whether it serves.
        every_s: Pause between two rounds of checks, in seconds.
    """
    while True:
        for name, check in checks.items():
            is_well = await check()
            await health.set(name, HealthCheckResponse.SERVING if is_well else HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(every_s)


async def serve_until_signal(
    server: grpc.aio.Server,
    background: Iterable[Coroutine[Any, Any, None]],
    settings: ServingSettings,
    registry: CollectorRegistry,
    interceptor: RewardloopInterceptor,
    health: HealthServicer,
    on_started: Callable[[], None],
    open_port: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Serve until a signal ends the process, then refuse new requests and let those in flight finish.

    Whatever is left of the process `CLOSING_S` after their time is ended with status 1.

    Args:
        server: Listens already, or `open_port` lets it listen; it is started here.
        background: Work that runs beside the server. If any of it fails, the process drains and ends.
        settings: Address of the metrics page, and how long requests may finish.
        registry: What the metrics page shows.
        interceptor: Refuses new requests while draining.
        health: Says NOT_SERVING while draining.
        on_started: Called once the server answers.
        open_port: Awaited beside the background work, before the server is started.

    Returns:
        The exit status: 0, or 1 if background work failed.

    Raises:
        SystemExit: If the metrics page cannot be served.
    """
    async with AsyncExitStack() as stack:
        tasks = Background(stack)
        for work in background:
            tasks.start(work)
        try:
            stack.callback(serve_metrics(settings.metrics_port, settings.metrics_host, registry))
        except CannotListen as error:
            raise SystemExit(str(error)) from error
        if open_port is not None:
            await open_port()
        await server.start()
        on_started()
        await wait_for_signal()

        log.info("draining", grace_s=settings.drain_grace_s)
        end_after(settings.drain_grace_s + CLOSING_S)
        interceptor.drain()
        await health.enter_graceful_shutdown()
        await server.stop(settings.drain_grace_s)
    return int(tasks.has_failed)


class Background:
    """Tasks that live until the stack closes. If one fails, the process is told to end rather than limp on."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.has_failed = False

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` as a task."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._fail_loudly)
        self._stack.push_async_callback(_cancel, task)

    def _fail_loudly(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.has_failed = True
            log.critical("a background task failed", exc_info=error)
            signal.raise_signal(signal.SIGTERM)


async def wait_for_signal() -> None:
    """Return after SIGTERM, SIGINT, or SIGHUP from a terminal that closes. Under nohup that one is ignored."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
