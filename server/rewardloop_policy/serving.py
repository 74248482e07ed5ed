"""The policy worker's composition root: builds every part, starts it, and drains it on SIGTERM."""

from __future__ import annotations

import asyncio
import functools
import signal
from typing import Any

import grpc
import structlog
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from rewardloop.formats.signatures import UnusableKey, trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import model_pb2_grpc, policy_pb2_grpc
from rewardloop_policy.policy_model import PolicyModel, choose_device, load_policy_model
from rewardloop_policy.sample_batcher import SampleBatcher
from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_policy.worker import PolicyServicer
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.calls.vocabulary import MODEL_SERVICE, POLICY_SERVICE, SAMPLING_LANE, methods_of
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_loop_lag, poll_queues, poll_redis
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer

log = structlog.get_logger()


async def serve(settings: PolicyWorkerSettings, is_traced: bool = False) -> int:
    """Run until SIGTERM or SIGINT, then drain."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = choose_device(settings.device)
    metrics = ServerMetrics()
    redis = connect_redis(settings.redis_url)
    try:
        store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
    except UnusableKey as error:
        raise SystemExit(f"rewardloop policy-worker: {error}") from error
    pointer = ActivePointer(redis)
    host: VersionHost[PolicyModel] = VersionHost(
        "policy",
        store,
        functools.partial(load_policy_model, device=device),
        metrics.switched,
        metrics.resident,
        on_refused=metrics.refused,
    )
    batcher = SampleBatcher(max_batch_rows=settings.max_batch_rows, max_queue_rows=settings.queue_rows, metrics=metrics)
    health = HealthServicer()
    entrance = Entrance(settings, metrics.registry, "rewardloop policy-worker")
    interceptor = RewardloopInterceptor(metrics, entrance.door)
    server = entrance.server([*_tracing(is_traced), interceptor], settings.max_message_bytes)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(
        PolicyServicer(
            host,
            batcher,
            GenerationLog(redis, settings.generation_ttl_s, GenerationKeys(redis, settings.generation_key_file)),
            Freshness(redis, metrics),
            Limits(max_text_bytes=settings.max_text_bytes),
            max_new_tokens=settings.max_new_tokens,
        ),
        server,
    )
    models = ModelServicer({"policy": host}, store, pointer, None)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    metrics.announce("policy", methods_of(POLICY_SERVICE, MODEL_SERVICE), [SAMPLING_LANE])
    metrics.announce_sampling()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(
        [POLICY_SERVICE.full_name, MODEL_SERVICE.full_name, reflection.SERVICE_NAME, "grpc.health.v1.Health"], server
    )
    entrance.open(server, settings.listen)

    # A background task that fails ends the group, and with it the process, rather than limping on.
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(batcher.run()),
            group.create_task(host.follow(pointer, settings.pointer_poll_s)),
            group.create_task(_report_health(health, host)),
            group.create_task(poll_loop_lag(metrics)),
            group.create_task(poll_queues(batcher)),
            group.create_task(poll_redis(metrics, redis)),
            *(group.create_task(work) for work in entrance.upkeep()),
        ]
        if settings.metrics_port:
            start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=metrics.registry)
        await server.start()
        log.info("listening", address=settings.listen, store=settings.store, device=str(device))
        await _until_signal()

        log.info("draining", grace_s=settings.drain_grace_s)
        interceptor.drain()
        await health.enter_graceful_shutdown()
        await server.stop(settings.drain_grace_s)
        for task in background:
            task.cancel()
    batcher.close()
    await redis.aclose()
    log.info("stopped")
    return 0


def _tracing(is_on: bool) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic only in its stubs
    if not is_on:
        return []
    from rewardloop.process.grpc_tracing import ServerTracing

    return [ServerTracing()]


async def _report_health(health: HealthServicer, host: VersionHost[Any]) -> None:
    """SERVING once a policy is warm; the shutdown's NOT_SERVING stays."""
    await health.set(MODEL_SERVICE.full_name, HealthCheckResponse.SERVING)
    while True:
        status = HealthCheckResponse.SERVING if host.active else HealthCheckResponse.NOT_SERVING
        for name in ("", POLICY_SERVICE.full_name):
            await health.set(name, status)
        await asyncio.sleep(0.1)


async def _until_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
