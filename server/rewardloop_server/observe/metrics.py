"""What the serving processes measure, on a registry of their own."""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rewardloop.formats.store import Manifest
from rewardloop.process.process_metrics import report_process
from rewardloop_server.calls.errors import all_errors

NOT_KNOWN = float("nan")

_ROLES = ("active", "canary", "shadow", "warm", "draining")
_SIGNALS = ("choice", "ranking", "thumb", "rating", "edit", "tie", "none")
_OUTCOMES = ("recorded", "spooled", "duplicate", "rejected", "failed")
_LOAD_FAILURES = ("CORRUPT_VERSION", "UNSAFE_VERSION", "UNTRUSTED_VERSION", "NOT_LOADABLE")

# Those of gRPC's OpenTelemetry server metrics: 10 microseconds to 100 s.
SECONDS_BUCKETS = (
    *(1e-05, 5e-05, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008),
    *(0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4),
    *(0.5, 0.65, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
# A second to a week: training waits for signals, then takes its time.
FRESHNESS_BUCKETS = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0),
    *(28800.0, 86400.0, 172800.0, 604800.0),
)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
RATIO_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# Scores are calibrated to about unit spread; fine around 0, where versions are alike.
DIFFERENCE_BUCKETS = (
    *(-5.0, -2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.001),
    *(0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return field(default_factory=lambda: Counter(f"rewardloop_{name}", text, labels, registry=None))


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return field(default_factory=lambda: Gauge(f"rewardloop_{name}", text, labels, registry=None))


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return field(default_factory=lambda: Histogram(f"rewardloop_{name}", text, labels, buckets=buckets, registry=None))


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """Every collector of one process; each instance has its own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests_total: Counter = _counter("requests_total", "RPCs that ended, by gRPC code.", "method", "code")
    request_seconds: Histogram = _histogram(
        "request_seconds", "Time from an RPC's admission to its end.", SECONDS_BUCKETS, "method"
    )
    requests_in_flight: Gauge = _gauge("requests_in_flight", "RPCs that were admitted and have not ended.", "method")
    rejected_total: Counter = _counter("rejected_total", "Requests and batch items refused, by error reason.", "reason")
    stage_seconds: Histogram = _histogram(
        "stage_seconds",
        "Time of a scored group by stage: queue, tokenize, run, total.",
        SECONDS_BUCKETS,
        "stage",
        "lane",
    )
    queue_tokens: Gauge = _gauge("queue_tokens", "Tokens that wait in a lane's queue.", "lane")
    queue_rows: Gauge = _gauge("queue_rows", "Candidates that wait in the policy worker's queue.", "lane")
    queue_saturation_ratio: Gauge = _gauge(
        "queue_saturation_ratio",
        "What a lane holds over the nearer one of its bounds (tokens or work; candidates); from 1 on it refuses.",
        "lane",
    )
    queue_oldest_wait_seconds: Gauge = _gauge(
        "queue_oldest_wait_seconds", "How long the longest waiting group of a lane has waited.", "lane"
    )
    queue_work_seconds: Gauge = _gauge(
        "queue_work_seconds", "How long the engine will work on what waits in a lane, at its present pace.", "lane"
    )
    tokenize_waiting_requests: Gauge = _gauge(
        "tokenize_waiting_requests", "Requests that wait for a thread that tokenizes."
    )
    batch_rows: Histogram = _histogram("batch_rows", "Sequences in one engine run.", ROWS_BUCKETS)
    batch_tokens: Histogram = _histogram("batch_tokens", "Tokens in one engine run, without padding.", TOKENS_BUCKETS)
    padding_ratio: Histogram = _histogram("padding_ratio", "Share of a run's tokens that is padding.", RATIO_BUCKETS)
    cache_lookups_total: Counter = _counter(
        "cache_lookups_total", "Rows looked up in the cache of scores, by outcome (hit, miss).", "lane", "outcome"
    )
    shadow_dropped_total: Counter = _counter(
        "shadow_dropped_total", "Groups in the shadow's share that it did not score: too much waited, or it failed."
    )
    shadow_score_difference: Histogram = _histogram(
        "shadow_score_difference",
        "Calibrated score of the shadow version less the one that was given out, by response.",
        DIFFERENCE_BUCKETS,
    )
    shadow_order_agreement_total: Counter = _counter(
        "shadow_order_agreement_total",
        "Whether the shadow version orders a group's responses alike: the best one of each group, and each pair.",
        "order",
        "outcome",
    )
    active_version: Gauge = _gauge(
        "active_version", "1 for the version that serves new requests.", "model", "version", "digest"
    )
    active_version_published_time_seconds: Gauge = _gauge(
        "active_version_published_time_seconds", "Unix time at which the active version was published.", "model"
    )
    active_version_activated_time_seconds: Gauge = _gauge(
        "active_version_activated_time_seconds", "Unix time since which this process serves it.", "model"
    )
    resident_versions: Gauge = _gauge(
        "resident_versions",
        "Versions in memory by role: active, canary, shadow, warm, draining.",
        "model",
        "role",
    )
    swaps_total: Counter = _counter("swaps_total", "Switches to another version, the first load included.", "model")
    versions_refused_total: Counter = _counter(
        "versions_refused_total",
        "Versions that were not taken, by reason: CORRUPT_VERSION, UNSAFE_VERSION, UNTRUSTED_VERSION, NOT_LOADABLE.",
        "model",
        "reason",
    )
    swap_seconds: Histogram = _histogram(
        "swap_seconds", "Time to fetch, load and warm a version before its switch.", SECONDS_BUCKETS, "model"
    )
    feedback_events_total: Counter = _counter(
        "feedback_events_total",
        "Preference signals by kind and outcome (recorded, spooled, duplicate, rejected, failed).",
        "kind",
        "outcome",
    )
    feedback_group_events: Histogram = _histogram(
        "feedback_group_events", "Signals that went to Redis in one write.", ROWS_BUCKETS
    )
    forged_generations_total: Counter = _counter(
        "forged_generations_total", "Generation ids named by callers that no key of this deployment signed."
    )
    feedback_to_live_seconds: Histogram = _histogram(
        "feedback_to_live_seconds",
        "From a signal's arrival to the first request answered by a version that learned from it.",
        FRESHNESS_BUCKETS,
    )
    cost_model: Gauge = _gauge(
        "cost_model_seconds",
        "Constants fitted to a version's runs: fixed, per_token, per_token2 (a token of a row, squared).",
        "version",
        "term",
    )
    event_loop_lag_seconds: Histogram = _histogram(
        "event_loop_lag_seconds", "How late the event loop wakes a sleeping task.", SECONDS_BUCKETS
    )
    redis_up: Gauge = _gauge("redis_up", "1 while Redis answers.")
    stream_length: Gauge = _gauge("stream_length", "Entries in the feedback stream; NaN while Redis is away.")
    spool_events: Gauge = _gauge("spool_events", "Signals in the local spool, which Redis has not taken yet.")
    spool_bytes: Gauge = _gauge("spool_bytes", "Size of the local spool on its disk.")
    spool_oldest_seconds: Gauge = _gauge(
        "spool_oldest_seconds", "Age of the oldest signal in the local spool; 0: none."
    )
    stream_pending: Gauge = _gauge(
        "stream_pending", "Entries that the trainer has read and not acknowledged; NaN while Redis is away."
    )
    stream_lag_seconds: Gauge = _gauge(
        "stream_lag_seconds", "Age of the oldest entry that is not archived; NaN while Redis is away."
    )
    dead_letters: Gauge = _gauge(
        "dead_letters", "Entries in the stream of those that could not be read; NaN while Redis is away."
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "registry":
                self.registry.register(getattr(self, each.name))
        for gauge in (
            self.redis_up,
            self.stream_length,
            self.stream_pending,
            self.stream_lag_seconds,
            self.dead_letters,
        ):
            gauge.set(NOT_KNOWN)
        report_process(self.registry)

    def announce(self, model: str, methods: Iterable[str], lanes: Iterable[str]) -> None:
        """Show what has not happened yet as 0: of a counter whose first value is 1 no alert sees the increase.

        ``methods``: as ``RewardService/Score``.
        """
        codes = {"OK", "CANCELLED", *(error.code.name for error in all_errors())}
        for method in methods:
            self.requests_in_flight.labels(method=method)
            self.request_seconds.labels(method=method)
            for code in sorted(codes):
                self.requests_total.labels(method=method, code=code)
        for error in all_errors():
            self.rejected_total.labels(reason=error.reason)
        for lane in lanes:
            for gauge in (self.queue_saturation_ratio, self.queue_oldest_wait_seconds):
                gauge.labels(lane=lane)
        for reason in _LOAD_FAILURES:
            self.versions_refused_total.labels(model=model, reason=reason)
        self.swaps_total.labels(model=model)
        self.swap_seconds.labels(model=model)
        self.resident(model, {})

    def announce_scoring(self) -> None:
        """`announce`, of what only the process has that scores and takes feedback."""
        for kind in _SIGNALS:
            for outcome in _OUTCOMES:
                self.feedback_events_total.labels(kind=kind, outcome=outcome)
        for outcome in ("hit", "miss"):
            for lane in ("production", "trainer"):
                self.cache_lookups_total.labels(lane=lane, outcome=outcome)
        for outcome in ("agree", "disagree"):
            for order in ("best", "pair"):
                self.shadow_order_agreement_total.labels(order=order, outcome=outcome)

    def resident(self, model: str, counts: Mapping[str, int]) -> None:
        """What is in memory now: versions by role."""
        for role in _ROLES:
            self.resident_versions.labels(model=model, role=role).set(counts.get(role, 0))

    def refused(self, model: str, reason: str) -> None:
        """A version was not taken."""
        self.versions_refused_total.labels(model=model, reason=reason).inc()

    def switched(self, previous: Manifest | None, manifest: Manifest, seconds: float) -> None:
        """A model's new requests go to ``manifest`` from now on; making it ready took ``seconds``."""
        if previous is not None:
            self.active_version.remove(previous.model, previous.version, previous.digest)
        self.active_version.labels(model=manifest.model, version=manifest.version, digest=manifest.digest).set(1)
        self.active_version_activated_time_seconds.labels(model=manifest.model).set(time.time())
        if manifest.created_at:
            published = datetime.fromisoformat(manifest.created_at).timestamp()
            self.active_version_published_time_seconds.labels(model=manifest.model).set(published)
        self.swaps_total.labels(model=manifest.model).inc()
        self.swap_seconds.labels(model=manifest.model).observe(seconds)
