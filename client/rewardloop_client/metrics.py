"""Counts calls as Prometheus metrics: ``RewardloopClient(..., observer=PrometheusCalls())``."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from rewardloop_client._observe import FinishedCall

__all__ = ["PrometheusCalls"]

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class PrometheusCalls:
    """An observer that any number of clients may share. A registry takes one of them.

    It keeps rewardloop_client_calls_total{method, code}, rewardloop_client_call_seconds{method},
    rewardloop_client_attempts_total{method} and rewardloop_client_hedges_total{method}.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._calls = Counter(
            "rewardloop_client_calls_total", "Calls that ended, by gRPC code.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "rewardloop_client_call_seconds",
            "Time of a call with all its attempts.",
            ("method",),
            buckets=_BUCKETS,
            registry=registry,
        )
        self._attempts = Counter(
            "rewardloop_client_attempts_total", "Requests sent, hedges not counted.", ("method",), registry=registry
        )
        self._hedges = Counter(
            "rewardloop_client_hedges_total", "Second requests to another replica.", ("method",), registry=registry
        )

    def __call__(self, call: FinishedCall) -> None:
        self._calls.labels(call.method, call.code).inc()
        self._seconds.labels(call.method).observe(call.seconds)
        self._attempts.labels(call.method).inc(call.attempts)
        if call.hedges:
            self._hedges.labels(call.method).inc(call.hedges)
