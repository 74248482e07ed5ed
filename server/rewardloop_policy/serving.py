"""The composition root of `rewardloop policy-worker`: builds every part, serves, and closes the parts afterwards."""

from __future__ import annotations

from typing import Any

import grpc
import structlog
import torch
from grpc_health.v1._async import HealthServicer
from redis.asyncio import Redis

from rewardloop.process.disk_metrics import DiskCollector
from rewardloop.v1 import model_pb2_grpc, policy_pb2_grpc
from rewardloop_policy.backend import Backend, P, Sampling, torch_backend, vllm_backend
from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_policy.worker import PolicyServicer
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.calls.vocabulary import MODEL_SERVICE, POLICY_SERVICE, SAMPLING_LANE, methods_of
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.guard.last_resort import end_now
from rewardloop_server.lifecycle import open_store, replication, report_health, serve_until_signal
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_loop_lag, poll_queues, poll_redis
from rewardloop_server.probes import add_health_and_reflection
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer

log = structlog.get_logger()

PROG = "rewardloop policy-worker"
SERVICES = (POLICY_SERVICE, MODEL_SERVICE)
_HEALTH_EVERY_S = 0.1


async def serve(settings: PolicyWorkerSettings, is_traced: bool = False) -> int:
    """Run until SIGTERM or SIGINT, then drain. Returns the exit status."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    metrics = ServerMetrics()
    metrics.registry.register(DiskCollector({"store": settings.store}))
    redis = connect_redis(settings.redis_url)
    store = open_store(settings, PROG)
    pointer = ActivePointer(redis, store.pointers, replication(settings, redis, metrics), metrics.followed)
    backend: Backend[Any] = (
        vllm_backend(settings, store, metrics, PROG) if settings.vllm_url else torch_backend(settings, metrics)
    )
    host: VersionHost[Any] = VersionHost(
        "policy",
        store,
        backend.load,
        metrics.switched,
        metrics.resident,
        on_refused=metrics.refused,
    )
    entrance = Entrance(settings, metrics.registry, PROG)
    interceptor = RewardloopInterceptor(metrics, entrance.door)
    server = entrance.server([*_tracing(is_traced), interceptor], settings.max_message_bytes)

    policy = policy_servicer(settings, host, backend.sampling, redis, metrics)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    models = ModelServicer({"policy": host}, store, pointer, None)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    health = add_health_and_reflection(server, SERVICES)
    metrics.announce("policy", methods_of(*SERVICES), [SAMPLING_LANE])
    metrics.announce_sampling()

    entrance.open(server, settings.listen)
    background = [
        *backend.background,
        backend.sampling.run(),
        host.follow(pointer, settings.pointer_poll_s),
        _keep_health(health, host, backend.sampling),
        poll_loop_lag(metrics),
        poll_queues(backend.sampling),
        poll_redis(metrics, redis),
        *entrance.upkeep(),
    ]

    def on_started() -> None:
        log.info("listening", address=settings.listen, store=settings.store, sampling=backend.where)

    status = await serve_until_signal(server, background, settings, metrics.registry, interceptor, health, on_started)
    backend.sampling.close()
    await redis.aclose()
    log.info("stopped")
    if backend.is_stuck_at_end():
        end_now(status)
    return status


def policy_servicer(
    settings: PolicyWorkerSettings,
    host: VersionHost[P],
    sampling: Sampling[P],
    redis: Redis,
    metrics: ServerMetrics,
) -> PolicyServicer[P]:
    """Build the PolicyService."""
    signing = GenerationKeys(redis, settings.generation_key_file)
    return PolicyServicer(
        host,
        sampling,
        GenerationLog(redis, settings.generation_ttl_s, signing),
        Freshness(redis, metrics),
        Limits(max_text_bytes=settings.max_text_bytes),
        max_new_tokens=settings.max_new_tokens,
    )


def _tracing(is_on: bool) -> list[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]  # generic only in its stubs
    if not is_on:
        return []
    from rewardloop.process.grpc_tracing import ServerTracing

    return [ServerTracing()]


async def _keep_health(health: HealthServicer, host: VersionHost[P], sampling: Sampling[P]) -> None:
    """Keep grpc.health.v1 true: the process serves once a policy is warm, and always shows its versions."""

    async def is_warm() -> bool:
        return host.active is not None and sampling.is_ready

    async def always() -> bool:
        return True

    checks = {MODEL_SERVICE.full_name: always, "": is_warm, POLICY_SERVICE.full_name: is_warm}
    await report_health(health, checks, _HEALTH_EVERY_S)
