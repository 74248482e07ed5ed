"""The composition root of `rewardloop serve`: builds every part, serves, and closes the parts after the drain.

store, Redis -> scoring -> feedback -> policy and models -> door -> services -> serve until a signal -> close
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1._async import HealthServicer
from redis.asyncio import Redis

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.redis_url import parse_redis_url
from rewardloop.process.disk_metrics import DiskCollector
from rewardloop.v1 import (
    access_pb2_grpc,
    feedback_pb2_grpc,
    labelling_pb2_grpc,
    model_pb2_grpc,
    operations_pb2_grpc,
    policy_pb2_grpc,
    reward_pb2_grpc,
)
from rewardloop_client import TLS, Access
from rewardloop_server.calls.large_batch import SCORE_BATCH, decode_batch
from rewardloop_server.calls.redis_link import connect_redis
from rewardloop_server.calls.replication import Replication
from rewardloop_server.calls.validate import Limits
from rewardloop_server.calls.vocabulary import (
    ACCESS_SERVICE,
    FEEDBACK_SERVICE,
    LABELLING_SERVICE,
    MODEL_SERVICE,
    OPERATIONS_SERVICE,
    POLICY_SERVICE,
    QUEUE_LANES,
    REWARD_SERVICE,
    methods_of,
)
from rewardloop_server.channel.front import Front, until_warm
from rewardloop_server.channel.pages import samples_of
from rewardloop_server.doors.entrance import Entrance
from rewardloop_server.doors.identity import AccessServicer
from rewardloop_server.doors.interceptor import RewardloopInterceptor
from rewardloop_server.feedback.caps import Caps
from rewardloop_server.feedback.erasures import ErasureDesk
from rewardloop_server.feedback.generation_keys import GenerationKeys
from rewardloop_server.feedback.generations import GenerationLog
from rewardloop_server.feedback.intake import Intake
from rewardloop_server.feedback.servicer import FeedbackServicer, fill_in
from rewardloop_server.feedback.spool import Spool, SpoolInUse
from rewardloop_server.feedback.stream import FeedbackStream
from rewardloop_server.generate.best_of import BestOf
from rewardloop_server.generate.relay import PolicyRelay
from rewardloop_server.guard.last_resort import end_now
from rewardloop_server.labelling.desk import LabellingDesk, open_desk
from rewardloop_server.labelling.queue import QueueRules
from rewardloop_server.labelling.servicer import LabellingServicer
from rewardloop_server.lifecycle import open_store, replication, report_health, serve_until_signal
from rewardloop_server.observe.durability import poll_durability
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.observe.polling import poll_loop_lag, poll_queues, poll_stream
from rewardloop_server.operations.build import operations_servicer
from rewardloop_server.operations.servicer import OperationsServicer
from rewardloop_server.operations.traffic import READ, Series
from rewardloop_server.probes import add_health_and_reflection
from rewardloop_server.scoring.score_group import TraceStages
from rewardloop_server.scoring.servicer import BulkLimits, RewardServicer
from rewardloop_server.scoring_parts import Scoring, build_scoring, mixtures_of
from rewardloop_server.settings import PROG, ServeSettings
from rewardloop_server.versions.freshness import Freshness
from rewardloop_server.versions.pointer import ActivePointer
from rewardloop_server.versions.servicer import ModelServicer
from rewardloop_server.versions.worker_link import PolicyWorkerLink

log = structlog.get_logger()

SERVICES = (
    ACCESS_SERVICE,
    REWARD_SERVICE,
    FEEDBACK_SERVICE,
    LABELLING_SERVICE,
    MODEL_SERVICE,
    POLICY_SERVICE,
    OPERATIONS_SERVICE,
)
_HEALTH_EVERY_S = 0.25


async def serve(settings: ServeSettings, is_traced: bool = False, front: Front | None = None) -> int:
    """Run until SIGTERM or SIGINT, then drain. Returns the exit status.

    Args:
        settings: Of this process; those of a `front` have its shares of the service's bounds.
        is_traced: Record traces.
        front: Which front this is, if another process runs the models. None if this one does.
    """
    tracing = Tracing.on() if is_traced else Tracing()
    metrics = ServerMetrics() if front is None else front.metrics
    mixtures = mixtures_of(settings)
    metrics.registry.register(DiskCollector({"store": settings.store, "spool": settings.spool}))
    redis = connect_redis(settings.redis_url)
    store = open_store(settings, PROG)
    replicated = replication(settings, redis, metrics)
    pointer = ActivePointer(redis, store.pointers, replicated, metrics.followed)
    scoring = build_scoring(settings, store, mixtures, Freshness(redis, metrics), metrics, tracing.stages, front)
    feedback = build_feedback(settings, redis, metrics, tracing.carried, replicated)
    desk = labelling_desk(settings, redis, feedback, scoring, metrics, replicated)
    worker = PolicyWorkerLink(settings.policy_address, tracing.outward, access_to_worker(settings))
    entrance = Entrance(settings, metrics.registry, PROG, **door_of(front))
    entrance.door.readers, entrance.door.audit.hide = scoring.scorers.readers, feedback.intake.erasures.hidden
    interceptor = RewardloopInterceptor(metrics, entrance.door, decoders(settings))
    server = entrance.server([*tracing.inward, interceptor], settings.max_message_bytes)

    relay = PolicyRelay(worker, BestOf(scoring.scorers, feedback.generations), feedback.generations)
    models = ModelServicer(scoring.hosts, store, pointer, worker)
    of_reward, of_feedback = reward_servicer(settings, scoring, metrics), feedback_servicer(settings, feedback, metrics)
    operations = operations_servicer(
        scoring.hosts, store, pointer, redis, metrics, replicated, worker.is_known, series_of(front)
    )
    add_services(server, of_reward, of_feedback, desk.servicer, models, relay, operations)
    health = add_health_and_reflection(server, SERVICES)
    metrics.announce(REWARD, methods_of(*SERVICES), QUEUE_LANES)
    metrics.announce_scoring(scoring.hosts)

    if front is None:
        entrance.open(server, settings.listen)
    await open_intake(feedback.intake)
    background = [
        scoring.watch.run(),
        scoring.batcher.run(),
        *(host.follow(pointer, settings.pointer_poll_s) for host in scoring.hosts.values()),
        keep_health(health, scoring, feedback.intake, desk, worker),
        poll_loop_lag(metrics),
        poll_queues(scoring.batcher),
        poll_stream(metrics, redis),
        poll_durability(metrics, redis, parse_redis_url(settings.redis_url).kind, replicated),
        *desk.upkeep(),
        *feedback.intake.upkeep(),
        *entrance.upkeep(),
    ]

    on_started = functools.partial(note_start, settings, front)
    open_port = functools.partial(open_late, front, scoring, entrance, server, settings.listen)
    status = await serve_until_signal(
        server, background, settings, metrics.registry, interceptor, health, on_started, open_port
    )
    scoring.close()
    await feedback.intake.close()
    await worker.close()
    await redis.aclose()
    log.info("stopped")
    if scoring.watch.has_work:
        end_now(status)
    return status


async def open_intake(intake: Intake) -> None:
    """Open the spool, if there is one. Raises SystemExit."""
    try:
        await intake.open()
    except (SpoolInUse, OSError) as error:
        raise SystemExit(f"{PROG}: no spool: {error}") from error


async def open_late(
    front: Front | None, scoring: Scoring, entrance: Entrance, server: grpc.aio.Server, address: str
) -> None:
    """Open the port of a front, to which the system would send calls of others at once, when it can score."""
    if front is not None:
        await until_warm(scoring.hosts[REWARD])
        entrance.open(server, address)


def note_start(settings: ServeSettings, front: Front | None) -> None:
    """Say that the server answers."""
    spare_pauses()
    log.info("listening", address=settings.listen, store=settings.store, metrics_port=settings.metrics_port)
    if front is not None:
        front.on_ready()


def door_of(front: Front | None) -> dict[str, Any]:
    """Return what the entrance of a front has that of the only process has not."""
    return {} if front is None else {"allow": front.allow, "shares_port": True}


def series_of(front: Front | None) -> Series | None:
    """Return what all fronts have answered; None for a process that answers alone."""
    return None if front is None else functools.partial(samples_of, front.folder, READ)


def decoders(settings: ServeSettings) -> dict[str, Callable[[bytes], object]]:
    """Return what reads the messages of the methods that do not take protobuf's form of them."""
    return {SCORE_BATCH: functools.partial(decode_batch, max_groups=settings.max_groups)}


def add_services(
    server: grpc.aio.Server,
    reward: RewardServicer,
    feedback: FeedbackServicer,
    labelling: LabellingServicer,
    models: ModelServicer,
    policy: PolicyRelay,
    operations: OperationsServicer,
) -> None:
    """Let the server answer every service."""
    access_pb2_grpc.add_AccessServiceServicer_to_server(AccessServicer(), server)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(reward, server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, server)
    labelling_pb2_grpc.add_LabellingServiceServicer_to_server(labelling, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(operations, server)


def reward_servicer(settings: ServeSettings, scoring: Scoring, metrics: ServerMetrics) -> RewardServicer:
    """Build the RewardService."""
    bulk = BulkLimits(settings.max_groups, settings.max_in_flight_per_stream, settings.bulk_window_tokens)
    return RewardServicer(scoring.scorers, scoring.batcher, limits(settings), bulk, metrics)


@dataclass(frozen=True, slots=True)
class Feedback:
    """The parts through which signals are taken."""

    intake: Intake
    generations: GenerationLog


def build_feedback(
    settings: ServeSettings, redis: Redis, metrics: ServerMetrics, carried: Callable[[], str], replicated: Replication
) -> Feedback:
    """Build the log of generations, and the intake with its stream and its spool."""
    caps = Caps(
        settings.annotator_signals_per_minute,
        settings.annotator_signals_per_day,
        settings.annotator_signals_per_generation,
        settings.generation_ttl_s,
        settings.caller_signals_per_minute,
        settings.caller_signals_per_day,
    )
    signing = GenerationKeys(redis, settings.generation_key_file)
    on_forged = metrics.forged_generations_total.inc
    generations = GenerationLog(
        redis, settings.generation_ttl_s, signing, on_forged, is_by_caller=settings.require_generation
    )
    on_group = metrics.feedback_group_events.observe
    stream = FeedbackStream(redis, settings.seen_ttl_s, caps, on_group, carried, settings.seen_ids, replicated)
    spool = Spool(Path(settings.spool)) if settings.spool else None
    fill = functools.partial(fill_in, limits=limits(settings))
    desk = ErasureDesk(redis, replicated, str(Path(settings.spool).resolve()) if settings.spool else "")
    intake = Intake(stream, generations, fill, metrics, spool, settings.spool_mib * 2**20, desk)
    return Feedback(intake, generations)


def feedback_servicer(settings: ServeSettings, feedback: Feedback, metrics: ServerMetrics) -> FeedbackServicer:
    """Build the FeedbackService."""
    return FeedbackServicer(
        feedback.intake,
        limits(settings),
        metrics,
        max_events=settings.max_events,
        needs_generation=settings.require_generation,
        aspects=(REWARD, *settings.reward_models),
    )


def labelling_desk(
    settings: ServeSettings,
    redis: Redis,
    feedback: Feedback,
    scoring: Scoring,
    metrics: ServerMetrics,
    replicated: Replication,
) -> LabellingDesk:
    """Build the LabellingService, whose answers go where feedback goes."""
    return open_desk(
        redis,
        replicated,
        QueueRules(
            lease_ms=int(1000 * settings.label_lease_s),
            uniform_share=settings.label_uniform_share,
            repeat_share=settings.label_repeat_share,
            most_skips=settings.label_skips,
        ),
        feedback.intake,
        feedback.generations,
        limits(settings),
        metrics,
        aspects=(REWARD, *settings.reward_models),
        max_tasks=settings.max_events,
        scorers=scoring.scorers,
    )


def limits(settings: ServeSettings) -> Limits:
    """Return the bounds of requests."""
    return Limits(
        max_text_bytes=settings.max_text_bytes,
        max_responses=settings.max_responses,
        max_event_bytes=settings.max_event_bytes,
    )


def access_to_worker(settings: ServeSettings) -> Access:
    """Return how this process knows the policy worker, and what it shows to it."""
    tls = TLS.of(
        settings.policy_ca, settings.policy_client_cert, settings.policy_client_key, settings.policy_server_name
    )
    return Access(tls, settings.policy_token_file)


@dataclass(frozen=True, slots=True)
class Tracing:
    """What the parts trace with. By default they do not trace.

    Attributes:
        inward: Interceptors of the server.
        outward: Interceptors of calls to the policy worker.
        stages: Records the stages of a scored group.
        carried: Returns the traceparent of the present call, or "".
    """

    inward: Sequence[grpc.aio.ServerInterceptor] = ()  # type: ignore[type-arg]  # generic only in its stubs
    outward: Sequence[grpc.aio.ClientInterceptor] = ()
    stages: TraceStages | None = None
    carried: Callable[[], str] = lambda: ""

    @classmethod
    def on(cls) -> Tracing:
        """Return what traces, and import OpenTelemetry for it."""
        from rewardloop.process.grpc_tracing import ServerTracing, aio_interceptors, carried
        from rewardloop_server.scoring.spans import trace_stages

        return cls([ServerTracing()], aio_interceptors(), trace_stages, carried)


def spare_pauses() -> None:
    """Let the garbage collector run seldom, and never again over what lives as long as the process.

    It stops the event loop while it runs: for 30 ms and more over all modules, and under a flood half of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


async def keep_health(
    health: HealthServicer, scoring: Scoring, intake: Intake, desk: LabellingDesk, worker: PolicyWorkerLink
) -> None:
    """Keep grpc.health.v1 true: each service by what it needs, and the whole process by the model "reward".

    Requests for another reward model fail with NO_MODEL as long as it has no warm version; the others are answered.
    """

    async def is_warm() -> bool:
        return scoring.hosts[REWARD].active is not None and not scoring.is_stuck

    async def always() -> bool:
        return True

    checks = {
        "": is_warm,
        REWARD_SERVICE.full_name: is_warm,
        FEEDBACK_SERVICE.full_name: intake.is_reachable,
        LABELLING_SERVICE.full_name: desk.is_reachable,
        MODEL_SERVICE.full_name: always,
        POLICY_SERVICE.full_name: worker.is_serving,
        OPERATIONS_SERVICE.full_name: always,
    }
    await report_health(health, checks, _HEALTH_EVERY_S)
