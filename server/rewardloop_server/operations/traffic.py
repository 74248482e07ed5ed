"""What this server has answered since its start, by its own metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from rewardloop.process.quantile import quantile
from rewardloop.v1 import operations_pb2
from rewardloop_server.observe.metrics import ServerMetrics


def traffic_of(metrics: ServerMetrics, started_s: float) -> operations_pb2.TrafficStatus:
    """Return the requests by method and code, the times of scoring, and the recorded signals.

    Args:
        metrics: This server's.
        started_s: When it started, in Unix seconds.
    """
    status = operations_pb2.TrafficStatus()
    status.start_time.FromNanoseconds(int(started_s * 1e9))
    for sample in _samples(metrics.requests_total, "_total"):
        if sample.value:
            status.requests.add(method=sample.labels["method"], code=sample.labels["code"], count=int(sample.value))
    status.requests.sort(key=lambda each: (each.method, each.code))
    counts: dict[float, float] = defaultdict(float)
    for sample in _samples(metrics.stage_seconds, "_bucket"):
        if sample.labels["stage"] == "total":
            counts[float(sample.labels["le"])] += sample.value
    middle, tail = quantile(counts, 0.5), quantile(counts, 0.99)
    if middle is not None and tail is not None:
        status.score_p50_s, status.score_p99_s = middle, tail
    status.signals = sum(
        int(sample.value)
        for sample in _samples(metrics.feedback_events_total, "_total")
        if sample.labels["outcome"] == "recorded"
    )
    return status


def _samples(collector: MetricWrapperBase, ending: str) -> Iterator[Sample]:
    for metric in collector.collect():
        yield from (sample for sample in metric.samples if sample.name.endswith(ending))
