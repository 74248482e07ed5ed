"""The serving process's composition root: builds every part, starts it, and drains it on SIGTERM."""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from rewardloop.formats.signatures import UnusableKey, trusted_keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2_grpc, model_pb2_grpc, policy_pb2_grpc, reward_pb2_grpc
from rewardloop_client import TLS, Access
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.validate import Limits
from rewardloop_server.calls.vocabulary import (
    FEEDBACK_SERVICE,
    MODEL_SERVICE,
    POLICY_SERVICE,
    QUEUE_LANES,
    REWARD_SERVICE,
    methods_of,
)
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import FeedbackServicer, fill_in
from rewardloop_server.feedback.spool import Spool, SpoolInUse
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.generate.best_of import BestOf
from rewardloop_server.generate.relay import PolicyRelay
from rewardloop_server.loading.sessions import SessionPool
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_loop_lag, poll_queues, poll_stream
from rewardloop_server.scoring.batch import Batcher, LaneLimits
from rewardloop_server.scoring.cache import ScoreCache
from rewardloop_server.scoring.engine import RewardModel, choose_device
from rewardloop_server.scoring.priority import step_back
from rewardloop_server.scoring.score_group import GroupScorer, TraceStages
from rewardloop_server.scoring.servicer import BulkLimits, RewardServicer
from rewardloop_server.scoring.shadow import ShadowScorer
from rewardloop_server.scoring.tokenize import TokenizePool
from rewardloop_server.settings import ServeSettings
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.host import VersionHost
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from rewardloop_server.versions.worker_link import PolicyWorkerLink

log = structlog.get_logger()

SERVICES = (REWARD_SERVICE, FEEDBACK_SERVICE, MODEL_SERVICE, POLICY_SERVICE)


async def serve(settings: ServeSettings, is_traced: bool = False) -> int:
    """Run until SIGTERM or SIGINT, then drain."""
    metrics = ServerMetrics()
    redis = connect_redis(settings.redis_url)
    try:
        store = ModelStore(settings.store, trusted=trusted_keys(settings.trusted_keys))
    except UnusableKey as error:
        raise SystemExit(f"rewardloop serve: {error}") from error
    pointer = ActivePointer(redis)
    tracing = Tracing.on() if is_traced else Tracing()
    caps = Caps(
        settings.annotator_signals_per_minute,
        settings.annotator_signals_per_day,
        settings.annotator_signals_per_generation,
        settings.generation_ttl_s,
    )
    device = choose_device(
        settings.device, threads=settings.intra_op_threads, spin=settings.spin, streams=settings.streams
    )
    health = HealthServicer()
    limits = Limits(max_text_bytes=settings.max_text_bytes, max_responses=settings.max_responses)

    host: VersionHost[RewardModel] = VersionHost(
        "reward",
        store,
        SessionPool(store, device, metrics).load,
        metrics.switched,
        metrics.resident,
        resident_versions=settings.resident_versions,
        load_threads=ThreadPoolExecutor(2, "load", functools.partial(step_back, settings.engine_nice)),
        on_refused=metrics.refused,
    )
    batcher = Batcher(
        token_budget=settings.token_budget,
        lanes=lane_limits(settings),
        trainer_max_wait_s=settings.trainer_max_wait_ms / 1000,
        metrics=metrics,
        engine_nice=settings.engine_nice,
        streams=device.streams,
    )
    tokenizers = TokenizePool(settings.tokenize_threads)
    cached_lanes = {"production": settings.cache_production, "trainer": settings.cache_trainer}
    cache = ScoreCache(
        max_mib=settings.cache_mib, lanes=[lane for lane, is_on in cached_lanes.items() if is_on], metrics=metrics
    )
    signing = GenerationKeys(redis, settings.generation_key_file)
    generations = GenerationLog(redis, settings.generation_ttl_s, signing, metrics.forged_generations_total.inc)
    intake = Intake(
        FeedbackStream(
            redis, settings.seen_ttl_s, caps, on_group=metrics.feedback_group_events.observe, carried=tracing.carried
        ),
        generations,
        functools.partial(fill_in, limits=limits),
        metrics,
        Spool(Path(settings.spool)) if settings.spool else None,
        settings.spool_mib * 2**20,
    )
    worker = PolicyWorkerLink(settings.policy_address, tracing.outward, access_to_worker(settings))
    shadow = ShadowScorer(host, tokenizers, batcher, metrics)
    scorer = GroupScorer(host, tokenizers, batcher, cache, Freshness(redis, metrics), shadow, metrics, tracing.stages)
    bulk = BulkLimits(settings.max_groups, settings.max_in_flight_per_stream, settings.bulk_window_tokens)
    relay = PolicyRelay(worker, BestOf(scorer, generations))
    entrance = Entrance(settings, metrics.registry, "rewardloop serve")
    interceptor = RewardloopInterceptor(metrics, entrance.door)
    server = entrance.server([*tracing.inward, interceptor], settings.max_message_bytes)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(RewardServicer(scorer, batcher, limits, bulk, metrics), server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(
        FeedbackServicer(intake, limits, metrics, max_events=settings.max_events),
        server,
    )
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer({"reward": host}, store, pointer, worker), server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(relay, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [service.full_name for service in SERVICES]
    metrics.announce("reward", methods_of(*SERVICES), QUEUE_LANES)
    metrics.announce_scoring()
    metrics.tokenize_waiting_requests.set_function(lambda: tokenizers.waiting)
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME, "grpc.health.v1.Health"], server)

    entrance.open(server, settings.listen)
    try:
        await intake.open()
    except (SpoolInUse, OSError) as error:
        raise SystemExit(f"rewardloop serve: no spool: {error}") from error
    async with AsyncExitStack() as stack:
        background = Background(stack)
        background.start(batcher.run())
        background.start(host.follow(pointer, settings.pointer_poll_s))
        background.start(report_health(health, names, host, intake, worker))
        background.start(poll_loop_lag(metrics))
        if settings.spool:
            background.start(intake.drain())
        background.start(poll_queues(batcher))
        background.start(poll_stream(metrics, redis))
        for work in entrance.upkeep():
            background.start(work)
        if settings.metrics_port:
            start_http_server(settings.metrics_port, addr=settings.metrics_host, registry=metrics.registry)
        await server.start()
        spare_pauses()
        log.info("listening", address=settings.listen, store=settings.store, metrics_port=settings.metrics_port)
        await wait_for_signal()

        log.info("draining", grace_s=settings.drain_grace_s)
        interceptor.drain()
        await health.enter_graceful_shutdown()
        await server.stop(settings.drain_grace_s)
    tokenizers.close()
    await intake.close()
    await worker.close()
    await redis.aclose()
    log.info("stopped")
    return 0


def access_to_worker(settings: ServeSettings) -> Access:
    """What this process shows to the policy worker, and by what it knows it."""
    tls = TLS.of(
        settings.policy_ca, settings.policy_client_cert, settings.policy_client_key, settings.policy_server_name
    )
    return Access(tls, settings.policy_token_file)


@dataclass(frozen=True, slots=True)
class Tracing:
    """What the parts are given to trace with; by default nothing."""

    inward: Sequence[grpc.aio.ServerInterceptor] = ()  # type: ignore[type-arg]  # generic only in its stubs
    outward: Sequence[grpc.aio.ClientInterceptor] = ()
    stages: TraceStages | None = None
    carried: Callable[[], str] = lambda: ""

    @classmethod
    def on(cls) -> Tracing:
        from rewardloop.process.grpc_tracing import ServerTracing, aio_interceptors, carried
        from rewardloop_server.scoring.spans import trace_stages

        return cls([ServerTracing()], aio_interceptors(), trace_stages, carried)


def lane_limits(settings: ServeSettings) -> dict[str, LaneLimits]:
    trainer_run_s = settings.trainer_run_ms / 1000
    return {
        "production": LaneLimits(
            settings.queue_tokens_production, settings.queue_ms_production / 1000, settings.production_run_ms / 1000
        ),
        "trainer": LaneLimits(settings.queue_tokens_trainer, settings.queue_ms_trainer / 1000, trainer_run_s),
        "shadow": LaneLimits(settings.queue_tokens_shadow, run_s=trainer_run_s),
    }


class Background:
    """Tasks that live until the stack closes; one that fails ends the process rather than limping on."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_fail_loudly)
        self._stack.push_async_callback(_cancel, task)


def spare_pauses() -> None:
    """Let the garbage collector look seldom, and never again at what lives as long as the process.

    It stops the event loop while it looks: over all modules 30 ms and more, and under a flood half of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


async def wait_for_signal() -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def report_health(health: Any, names: Sequence[str], host: Any, stream: Any, worker: Any) -> None:
    """Keep grpc.health.v1 true: each service by what it needs, "" (the whole) by the reward model."""

    def status(is_well: bool) -> Any:
        return HealthCheckResponse.SERVING if is_well else HealthCheckResponse.NOT_SERVING

    reward, feedback, models, policy = names
    while True:
        is_warm = host.active is not None
        for name, is_well in (
            ("", is_warm),
            (reward, is_warm),
            (feedback, await stream.is_reachable()),
            (models, True),
            (policy, await worker.is_serving()),
        ):
            await health.set(name, status(is_well))
        await asyncio.sleep(0.25)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _fail_loudly(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a background task failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
