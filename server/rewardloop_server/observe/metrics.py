"""The metrics of the serving processes, on a registry of their own.

Each label's values come from the definitions of the words. So the values that are announced, counted and asked for by
alerts are the same: `LABEL_VALUES`.
"""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rewardloop.formats.mixing.names import REWARD
from rewardloop.formats.store import MODELS, Manifest
from rewardloop.formats.vocabulary import LANES
from rewardloop.process.process_metrics import report_process
from rewardloop_server.calls.errors import VersionRefused, errors_of
from rewardloop_server.calls.vocabulary import (
    AGREEMENTS,
    CACHE_OUTCOMES,
    CODES,
    COMPARED_ORDERS,
    COST_TERMS,
    COUNTED_KINDS,
    DURABILITIES,
    FAILED_RUN_OUTCOMES,
    FEEDBACK_OUTCOMES,
    METHODS,
    POINTER_SOURCES,
    QUEUE_LANES,
    RESIDENT_ROLES,
    SAMPLING_LANE,
    SAMPLING_STAGES,
    STAGES,
    WRITTEN,
    Agreement,
    ComparedOrder,
    CostTerm,
    Durability,
    PointerSource,
)
from rewardloop_server.device.kinds import ENGINES, EngineKind
from rewardloop_server.observe.declare import (
    ANY,
    DIFFERENCE_BUCKETS,
    FRESHNESS_BUCKETS,
    RATIO_BUCKETS,
    ROWS_BUCKETS,
    SECONDS_BUCKETS,
    TOKENS_BUCKETS,
    Values,
    counter,
    gauge,
    histogram,
    label_values,
    listed,
    register,
)
from rewardloop_server.observe.door_metrics import DoorMetrics
from rewardloop_server.observe.labelling_metrics import LabellingMetrics

NOT_KNOWN = float("nan")

_REASONS = tuple(error.reason for error in errors_of())
_REFUSALS = tuple(error.reason for error in errors_of(VersionRefused))


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """Every collector of one process; each instance has its own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests_total: Counter = counter("requests_total", "RPCs that ended, by gRPC code.", method=METHODS, code=CODES)
    request_seconds: Histogram = histogram(
        "request_seconds", "Time from an RPC's admission to its end.", SECONDS_BUCKETS, method=METHODS
    )
    requests_in_flight: Gauge = gauge(
        "requests_in_flight", "RPCs that were admitted and have not ended.", method=METHODS
    )
    rejected_total: Counter = counter(
        "rejected_total", "Requests and batch items refused, by error reason.", reason=_REASONS
    )
    stage_seconds: Histogram = histogram(
        "stage_seconds",
        f"Time of a scored group by stage: {listed(STAGES)}.",
        SECONDS_BUCKETS,
        stage=STAGES,
        lane=LANES,
    )
    queue_tokens: Gauge = gauge("queue_tokens", "Tokens that wait in a lane's queue.", lane=QUEUE_LANES)
    queue_rows: Gauge = gauge("queue_rows", "Candidates that wait in the policy worker's queue.", lane=(SAMPLING_LANE,))
    queue_saturation_ratio: Gauge = gauge(
        "queue_saturation_ratio",
        "How much of the nearer of its bounds a lane uses (tokens or work; candidates); from 1 on it refuses.",
        lane=QUEUE_LANES,
    )
    queue_oldest_wait_seconds: Gauge = gauge(
        "queue_oldest_wait_seconds", "How long the longest waiting group of a lane has waited.", lane=QUEUE_LANES
    )
    queue_work_seconds: Gauge = gauge(
        "queue_work_seconds",
        "How long the engine will work on what waits in a lane, at its present pace.",
        lane=QUEUE_LANES,
    )
    tokenize_waiting_requests: Gauge = gauge(
        "tokenize_waiting_requests", "Requests that wait for a thread that tokenizes."
    )
    batch_rows: Histogram = histogram("batch_rows", "Sequences in one engine run.", ROWS_BUCKETS)
    batch_tokens: Histogram = histogram("batch_tokens", "Tokens in one engine run, without padding.", TOKENS_BUCKETS)
    padding_ratio: Histogram = histogram("padding_ratio", "Share of a run's tokens that is padding.", RATIO_BUCKETS)
    run_seconds_total: Counter = counter(
        "run_seconds_total",
        "Time of the engine's runs, by where they ran: cpu, the GPU, such as cuda:0, or a server elsewhere (elsewhere)."
        " Runs at once count each.",
        device=ANY,
    )
    failed_runs_total: Counter = counter(
        "failed_runs_total",
        "Engine runs that failed, by what became of their requests: run again in parts (split), run again in smaller"
        " runs because memory did not suffice (smaller), the one request failed (isolated), or all failed with a"
        " version that no longer runs (broken) or whose server did not answer (away).",
        outcome=FAILED_RUN_OUTCOMES,
    )
    stuck_runs_total: Counter = counter(
        "stuck_runs_total", "Runs that did not end in time and were told to stop.", model=MODELS
    )
    version_stuck_runs: Gauge = gauge(
        "version_stuck_runs",
        "The same since this process began, of each version that had one.",
        model=MODELS,
        version=ANY,
    )
    engine_stuck: Gauge = gauge(
        "engine_stuck",
        "1 while requests are turned away because a run does not end, or the server is away that runs the version.",
        model=MODELS,
    )
    cache_lookups_total: Counter = counter(
        "cache_lookups_total",
        f"Rows looked up in the cache of scores, by outcome ({listed(CACHE_OUTCOMES)}).",
        lane=LANES,
        outcome=CACHE_OUTCOMES,
    )
    canary_away_total: Counter = counter(
        "canary_away_total",
        "Groups in the canary's share that the live version scored, because the canary's server was away.",
        model=(REWARD,),
    )
    shadow_dropped_total: Counter = counter(
        "shadow_dropped_total",
        "Groups in the shadow's share that it did not score: too much waited, or it failed.",
        model=(REWARD,),
    )
    shadow_score_difference: Histogram = histogram(
        "shadow_score_difference",
        "Calibrated score of the shadow version less the one that was given out, by response.",
        DIFFERENCE_BUCKETS,
        model=(REWARD,),
    )
    shadow_order_agreement_total: Counter = counter(
        "shadow_order_agreement_total",
        "Whether the shadow version orders a group's responses alike: the best one of each group, and each pair.",
        model=(REWARD,),
        order=COMPARED_ORDERS,
        outcome=AGREEMENTS,
    )
    mixture_responses_total: Counter = counter(
        "mixture_responses_total", "Responses scored by a mixture, by its name in the file of mixtures.", mixture=ANY
    )
    below_floor_total: Counter = counter(
        "below_floor_total", "Those whose value was below the floor of a part.", mixture=ANY, part=ANY
    )
    active_version: Gauge = gauge(
        "active_version", "1 for the version that serves new requests.", model=MODELS, version=ANY, digest=ANY
    )
    active_version_published_time_seconds: Gauge = gauge(
        "active_version_published_time_seconds", "Unix time at which the active version was published.", model=MODELS
    )
    active_version_activated_time_seconds: Gauge = gauge(
        "active_version_activated_time_seconds", "Unix time since which this process serves it.", model=MODELS
    )
    resident_versions: Gauge = gauge(
        "resident_versions",
        f"Versions in memory by role: {listed(RESIDENT_ROLES)}.",
        model=MODELS,
        role=RESIDENT_ROLES,
    )
    swaps_total: Counter = counter("swaps_total", "Switches to another version, the first load included.", model=MODELS)
    versions_refused_total: Counter = counter(
        "versions_refused_total",
        f"Versions that were not taken, by reason: {listed(_REFUSALS)}.",
        model=MODELS,
        reason=_REFUSALS,
    )
    swap_seconds: Histogram = histogram(
        "swap_seconds", "Time to fetch, load and warm a version before its switch.", SECONDS_BUCKETS, model=MODELS
    )
    feedback_events_total: Counter = counter(
        "feedback_events_total",
        f"Preference signals by kind and outcome ({listed(FEEDBACK_OUTCOMES)}).",
        kind=COUNTED_KINDS,
        outcome=FEEDBACK_OUTCOMES,
    )
    feedback_group_events: Histogram = histogram(
        "feedback_group_events", "Signals that went to Redis in one write.", ROWS_BUCKETS
    )
    forged_generations_total: Counter = counter(
        "forged_generations_total", "Generation ids named by callers that no key of this deployment signed."
    )
    feedback_to_live_seconds: Histogram = histogram(
        "feedback_to_live_seconds",
        "From a signal's arrival to the first request answered by a version that learned from it.",
        FRESHNESS_BUCKETS,
    )
    cost_model: Gauge = gauge(
        "cost_model_seconds",
        f"Constants fitted to a version's runs: {listed(COST_TERMS)} (a token of a row, squared).",
        model=ANY,
        version=ANY,
        term=COST_TERMS,
    )
    event_loop_lag_seconds: Histogram = histogram(
        "event_loop_lag_seconds", "How late the event loop wakes a sleeping task.", SECONDS_BUCKETS
    )
    prefix_lookups_total: Counter = counter(
        "prefix_lookups_total",
        "Runs of responses to one prompt by the torch engine, by whether the prompt's keys and values were kept (hit).",
        outcome=CACHE_OUTCOMES,
    )
    prefix_cache_bytes: Gauge = gauge("prefix_cache_bytes", "Bytes of the keys and values of prompts that are kept.")
    scoring_engine: Gauge = gauge(
        "scoring_engine",
        "1 for what runs reward models: their graphs by ONNX Runtime (onnx), or the torch models beside them (torch).",
        engine=ENGINES,
    )
    redis_up: Gauge = gauge("redis_up", "1 while Redis answers.")
    redis_durability: Gauge = gauge(
        "redis_durability",
        f"1 for how durable Redis keeps what it is told: {listed(DURABILITIES)}.",
        durability=DURABILITIES,
    )
    redis_replicas: Gauge = gauge(
        "redis_replicas", "Replicas that follow Redis (the fewest of a cluster's parts); NaN while that is not known."
    )
    redis_replicas_required: Gauge = gauge(
        "redis_replicas_required", "Replicas that must have a signal or a moved pointer before it is acknowledged."
    )
    redis_unreplicated_total: Counter = counter(
        "redis_unreplicated_total",
        f"Writes that were refused because too few replicas of Redis had them in time: {listed(WRITTEN)}.",
        written=WRITTEN,
    )
    pointer_source: Gauge = gauge(
        "pointer_source",
        "1 for where the pointer is read that a model follows: Redis, or the copy in the store while Redis is away.",
        model=MODELS,
        source=POINTER_SOURCES,
    )
    stream_length: Gauge = gauge("stream_length", "Entries in the feedback stream; NaN while Redis is away.")
    spool_events: Gauge = gauge("spool_events", "Signals in the local spool, which Redis has not taken yet.")
    spool_bytes: Gauge = gauge("spool_bytes", "Size of the local spool on its disk.")
    spool_oldest_seconds: Gauge = gauge("spool_oldest_seconds", "Age of the oldest signal in the local spool; 0: none.")
    stream_pending: Gauge = gauge(
        "stream_pending", "Entries that the trainer has read and not acknowledged; NaN while Redis is away."
    )
    stream_lag_seconds: Gauge = gauge(
        "stream_lag_seconds", "Age of the oldest entry that is not archived; NaN while Redis is away."
    )
    dead_letters: Gauge = gauge(
        "dead_letters", "Entries in the stream of those that could not be read; NaN while Redis is away."
    )
    remembered_ids: Gauge = gauge(
        "remembered_ids",
        "Event ids in Redis by which a signal that is sent again is recognised; NaN while Redis is away.",
    )
    remembered_ids_seconds: Gauge = gauge(
        "remembered_ids_seconds", "How long ago the oldest of these ids may have come; NaN while Redis is away."
    )

    def __post_init__(self) -> None:
        register(self, self.registry)
        for unknown in (
            self.redis_up,
            self.redis_replicas,
            self.stream_length,
            self.stream_pending,
            self.stream_lag_seconds,
            self.dead_letters,
            self.remembered_ids,
            self.remembered_ids_seconds,
        ):
            unknown.set(NOT_KNOWN)
        report_process(self.registry)

    def announce(self, model: str, methods: Iterable[str], lanes: Iterable[str]) -> None:
        """Show every value that may be counted as 0. An alert does not see the increase of a counter that begins at 1.

        Args:
            model: The model that the process serves.
            methods: The methods that it answers, as ``RewardService/Score``.
            lanes: The lanes in which its requests wait.
        """
        for method in methods:
            self.requests_in_flight.labels(method=method)
            self.request_seconds.labels(method=method)
            for code in CODES:
                self.requests_total.labels(method=method, code=code)
        for reason in _REASONS:
            self.rejected_total.labels(reason=reason)
        for lane in lanes:
            for of_queue in (self.queue_saturation_ratio, self.queue_oldest_wait_seconds):
                of_queue.labels(lane=lane)
        for written in WRITTEN:
            self.redis_unreplicated_total.labels(written=written)
        self.engine_stuck.labels(model=model)
        self.announce_model(model)

    def announce_model(self, model: str) -> None:
        """Announce what each model has that the process serves.

        The models are those of the process's settings, so that these bound the number of series.
        """
        for reason in _REFUSALS:
            self.versions_refused_total.labels(model=model, reason=reason)
        for source in POINTER_SOURCES:
            self.pointer_source.labels(model=model, source=source).set(0)
        self.swaps_total.labels(model=model)
        self.swap_seconds.labels(model=model)
        self.stuck_runs_total.labels(model=model)
        self.resident(model, {})

    def announce_scoring(self, models: Iterable[str] = (REWARD,)) -> None:
        """Announce what only the process has that scores and takes feedback. ``models`` are its reward models."""
        for lane in QUEUE_LANES:
            self.queue_tokens.labels(lane=lane)
            self.queue_work_seconds.labels(lane=lane)
        for lane in LANES:
            for stage in STAGES:
                self.stage_seconds.labels(stage=stage, lane=lane)
            for looked_up in CACHE_OUTCOMES:
                self.cache_lookups_total.labels(lane=lane, outcome=looked_up)
        for looked_up in CACHE_OUTCOMES:
            self.prefix_lookups_total.labels(outcome=looked_up)
        for failed in FAILED_RUN_OUTCOMES:
            self.failed_runs_total.labels(outcome=failed)
        for kind in COUNTED_KINDS:
            for outcome in FEEDBACK_OUTCOMES:
                self.feedback_events_total.labels(kind=kind, outcome=outcome)
        self.durable("unknown")
        for model in models:
            self.announce_model(model)
            self.canary_away_total.labels(model=model)
            self.shadow_dropped_total.labels(model=model)
            self.shadow_score_difference.labels(model=model)
            for order in COMPARED_ORDERS:
                for agreement in AGREEMENTS:
                    self.compared(model, order, agreement, 0)

    def announce_sampling(self) -> None:
        """Announce what only the policy worker has."""
        self.queue_rows.labels(lane=SAMPLING_LANE)
        for stage in SAMPLING_STAGES:
            self.stage_seconds.labels(stage=stage, lane=SAMPLING_LANE)

    def compared(self, model: str, order: ComparedOrder, outcome: Agreement, count: int) -> None:
        """Count comparisons of the shadow version with the one that answered."""
        self.shadow_order_agreement_total.labels(model=model, order=order, outcome=outcome).inc(count)

    def resident(self, model: str, counts: Mapping[str, int]) -> None:
        """Show how many versions of the model are in memory now, by role."""
        for role in RESIDENT_ROLES:
            self.resident_versions.labels(model=model, role=role).set(counts.get(role, 0))

    def refused(self, model: str, reason: str) -> None:
        """Count a version that was not taken."""
        self.versions_refused_total.labels(model=model, reason=reason).inc()

    def stuck(self, model: str, version: str) -> None:
        """Count a run that did not end in time."""
        self.stuck_runs_total.labels(model=model).inc()
        self.version_stuck_runs.labels(model=model, version=version).inc()

    def followed(self, model: str, source: PointerSource) -> None:
        """Show where the pointer was read that the model follows."""
        for each in POINTER_SOURCES:
            self.pointer_source.labels(model=model, source=each).set(each == source)

    def looked_up_prefix(self, is_hit: bool) -> None:
        """Count a run whose prompt was looked for."""
        self.prefix_lookups_total.labels(outcome="hit" if is_hit else "miss").inc()

    def runs_by(self, engine: EngineKind) -> None:
        """Show what runs reward models."""
        for each in ENGINES:
            self.scoring_engine.labels(engine=each).set(each == engine)

    def durable(self, durability: Durability) -> None:
        """Show how durable Redis keeps what it is told."""
        for each in DURABILITIES:
            self.redis_durability.labels(durability=each).set(each == durability)

    def switched(self, previous: Manifest | None, manifest: Manifest, seconds: float) -> None:
        """Show that new requests go to ``manifest`` from now on, which took ``seconds`` to make ready."""
        if previous is not None:
            self.active_version.remove(previous.model, previous.version, previous.digest)
        self.active_version.labels(model=manifest.model, version=manifest.version, digest=manifest.digest).set(1)
        self.active_version_activated_time_seconds.labels(model=manifest.model).set(time.time())
        if manifest.created_at:
            published = datetime.fromisoformat(manifest.created_at).timestamp()
            self.active_version_published_time_seconds.labels(model=manifest.model).set(published)
        self.swaps_total.labels(model=manifest.model).inc()
        self.swap_seconds.labels(model=manifest.model).observe(seconds)

    def show_cost(self, manifest: Manifest, terms: Mapping[CostTerm, float]) -> None:
        """Show how long a loaded version's runs take, by the terms of its cost model."""
        for term, seconds in terms.items():
            self.cost_model.labels(model=manifest.model, version=manifest.version, term=term).set(seconds)

    def forget_cost(self, manifest: Manifest) -> None:
        """Show no more what `show_cost` showed of a version, which is closed."""
        for term in COST_TERMS:
            self.cost_model.remove(manifest.model, manifest.version, term)


# For each metric of a serving process the values that each of its labels may have; ANY where they cannot be listed.
LABEL_VALUES: Final[Mapping[str, Mapping[str, Values]]] = {
    **label_values(ServerMetrics),
    **label_values(DoorMetrics),
    **label_values(LabellingMetrics),
}
