"""Declares metrics: their names, texts, buckets, and the values that each label may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# The values of a label, or ANY for a label whose values nobody can list, such as a version or a caller.
Values: TypeAlias = tuple[str, ...] | None
ANY: Final = None

# The buckets of gRPC's OpenTelemetry server metrics: 10 microseconds to 100 s.
SECONDS_BUCKETS = (
    *(1e-05, 5e-05, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008),
    *(0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4),
    *(0.5, 0.65, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
# A second to a week, because training waits for signals and then takes time.
FRESHNESS_BUCKETS = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0),
    *(28800.0, 86400.0, 172800.0, 604800.0),
)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
RATIO_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Scores are calibrated to about unit spread. The buckets are fine around 0, because versions differ little.
DIFFERENCE_BUCKETS = (
    *(-5.0, -2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.001),
    *(0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)

_NAME, _LABELS = "name", "labels"


def counter(name: str, text: str, **labels: Values) -> Counter:
    """Declare a dataclass field that holds the counter ``rewardloop_<name>``."""
    return field(
        default_factory=lambda: Counter(f"rewardloop_{name}", text, tuple(labels), registry=None),
        metadata=_metadata(name, labels),
    )


def gauge(name: str, text: str, **labels: Values) -> Gauge:
    """Declare a dataclass field that holds the gauge ``rewardloop_<name>``."""
    return field(
        default_factory=lambda: Gauge(f"rewardloop_{name}", text, tuple(labels), registry=None),
        metadata=_metadata(name, labels),
    )


def histogram(name: str, text: str, buckets: tuple[float, ...], **labels: Values) -> Histogram:
    """Declare a dataclass field that holds the histogram ``rewardloop_<name>``."""
    return field(
        default_factory=lambda: Histogram(f"rewardloop_{name}", text, tuple(labels), buckets=buckets, registry=None),
        metadata=_metadata(name, labels),
    )


def register(declared: Any, registry: CollectorRegistry) -> None:
    """Put every metric of an instance of a class of such fields on the registry."""
    for each in fields(declared):
        if _NAME in each.metadata:
            registry.register(getattr(declared, each.name))


def label_values(declaring: Any) -> Mapping[str, Mapping[str, Values]]:
    """Return the labels and their values of each metric that the class declares.

    The metric's name is the key: a counter's ends in ``_total``, and a histogram's has no ``_bucket``.
    """
    return {each.metadata[_NAME]: each.metadata[_LABELS] for each in fields(declaring) if _NAME in each.metadata}


def listed(values: Iterable[str]) -> str:
    """Return the values as a help text names them."""
    return ", ".join(values)


def _metadata(name: str, labels: Mapping[str, Values]) -> dict[str, object]:
    return {_NAME: f"rewardloop_{name}", _LABELS: dict(labels)}
