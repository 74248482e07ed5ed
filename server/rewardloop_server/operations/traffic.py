"""What the service has answered since its start, by its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client.samples import Sample

from rewardloop.process.quantile import quantile
from rewardloop.v1 import operations_pb2
from rewardloop_server.observe.metrics import ServerMetrics

REQUESTS = "rewardloop_requests_total"
STAGES = "rewardloop_stage_seconds_bucket"
SIGNALS = "rewardloop_feedback_events_total"
READ = (REQUESTS, STAGES, SIGNALS)

# Returns the present samples of `READ`, of every process that answers. Called in a thread.
Series: TypeAlias = Callable[[], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What this process has measured, and what the whole service has answered."""

    metrics: ServerMetrics
    series: Series


def own_series(metrics: ServerMetrics) -> Series:
    """Return the samples of this process alone."""
    collectors = (metrics.requests_total, metrics.stage_seconds, metrics.feedback_events_total)

    def samples() -> list[Sample]:
        families = (family for collector in collectors for family in collector.collect())
        return [sample for family in families for sample in family.samples if sample.name in READ]

    return samples


def traffic_of(samples: Sequence[Sample], started_s: float) -> operations_pb2.TrafficStatus:
    """Return the requests by method and code, the times of scoring, and the recorded signals.

    Args:
        samples: Those of `READ`. Series of several processes that differ in nothing else are summed.
        started_s: When the service started, in Unix seconds.
    """
    status = operations_pb2.TrafficStatus()
    status.start_time.FromNanoseconds(int(started_s * 1e9))
    requests: dict[tuple[str, str], float] = defaultdict(float)
    for sample in _named(REQUESTS, samples):
        requests[sample.labels["method"], sample.labels["code"]] += sample.value
    for (method, code), count in sorted(requests.items()):
        if count:
            status.requests.add(method=method, code=code, count=int(count))
    counts: dict[float, float] = defaultdict(float)
    for sample in _named(STAGES, samples):
        if sample.labels["stage"] == "total":
            counts[float(sample.labels["le"])] += sample.value
    middle, tail = quantile(counts, 0.5), quantile(counts, 0.99)
    if middle is not None and tail is not None:
        status.score_p50_s, status.score_p99_s = middle, tail
    signals = (s.value for s in _named(SIGNALS, samples) if s.labels["outcome"] == "recorded")
    status.signals = int(sum(signals))
    return status


def _named(name: str, samples: Iterable[Sample]) -> Iterable[Sample]:
    return (sample for sample in samples if sample.name == name)
