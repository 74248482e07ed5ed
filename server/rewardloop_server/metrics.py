"""What the serving processes measure, on a registry of their own."""

# ruff: noqa: RUF009 - what the functions called in the class body return is a dataclass field with a factory

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from rewardloop.formats.store import Manifest

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
    rejected_total: Counter = _counter("rejected_total", "Requests and batch items refused, by error reason.", "reason")
    stage_seconds: Histogram = _histogram(
        "stage_seconds",
        "Time of a scored group by stage: queue, tokenize, run, total.",
        SECONDS_BUCKETS,
        "stage",
        "lane",
    )
    queue_tokens: Gauge = _gauge("queue_tokens", "Tokens that wait in a lane's queue.", "lane")
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
        "Preference signals by kind and outcome (recorded, duplicate, rejected, failed).",
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
        "cost_model",
        "Constants fitted to a version's runs, seconds: fixed, per_token, per_token2 (a token of a row, squared).",
        "version",
        "term",
    )
    event_loop_lag_seconds: Histogram = _histogram(
        "event_loop_lag_seconds", "How late the event loop wakes a sleeping task.", SECONDS_BUCKETS
    )
    stream_length: Gauge = _gauge("stream_length", "Entries in the feedback stream; NaN while Redis is away.")

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "registry":
                self.registry.register(getattr(self, each.name))
        ProcessCollector(registry=self.registry)

    def resident(self, model: str, counts: Mapping[str, int]) -> None:
        """What is in memory now: versions by role."""
        for role in ("active", "canary", "shadow", "warm", "draining"):
            self.resident_versions.labels(model=model, role=role).set(counts.get(role, 0))

    def refused(self, model: str, reason: str) -> None:
        """A version was not taken."""
        self.versions_refused_total.labels(model=model, reason=reason).inc()

    def switched(self, previous: Manifest | None, manifest: Manifest, seconds: float) -> None:
        """A model's new requests go to ``manifest`` from now on; making it ready took ``seconds``."""
        if previous is not None:
            self.active_version.remove(previous.model, previous.version, previous.digest)
        self.active_version.labels(model=manifest.model, version=manifest.version, digest=manifest.digest).set(1)
        self.swaps_total.labels(model=manifest.model).inc()
        self.swap_seconds.labels(model=manifest.model).observe(seconds)
