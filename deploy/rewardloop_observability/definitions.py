"""Every metric of rewardloop's processes: its name, its labels, and the values that a label can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.utils import floatToGoString

from rewardloop.process.disk_metrics import DiskCollector
from rewardloop.process.process_metrics import GpuCollector
from rewardloop_client.metrics import PrometheusCalls
from rewardloop_server.observe.door_metrics import DoorMetrics
from rewardloop_server.observe.labelling_metrics import LabellingMetrics
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.metrics import TrainerMetrics

# What Python's and the operating system's own collectors report.
_FOREIGN = ("process_", "python_")


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: The name that a query begins with: a counter ends in ``_total``; a histogram has no ``_bucket``.
        kind: Prometheus's type: counter, gauge, histogram or info.
        labels: Names of the labels that the process sets.
        text: What the metrics page says about it.
        bounds: Upper bounds of a histogram's buckets as the label ``le`` writes them; empty for other kinds.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    bounds: tuple[str, ...] = field(default=())


def serving_metrics() -> Mapping[str, Definition]:
    """The metrics of the server and of the policy worker by name. Both have the same registry."""
    registry = ServerMetrics().registry
    DoorMetrics(registry)
    LabellingMetrics(registry)
    return _by_name(*_definitions(registry), *_described())


def trainer_metrics() -> Mapping[str, Definition]:
    """The trainer's metrics by name."""
    return _by_name(*_definitions(TrainerMetrics().registry), *_described())


def judge_metrics() -> Mapping[str, Definition]:
    """The metrics by name of `rewardloop judge` and `rewardloop critique`."""
    return _by_name(*_definitions(JudgeMetrics().registry), *_described())


def client_metrics() -> Mapping[str, Definition]:
    """The metrics by name that the client library counts in an application that gives it a `PrometheusCalls`."""
    registry = CollectorRegistry()
    PrometheusCalls(registry)
    return _by_name(*_definitions(registry))


def _by_name(*definitions: Definition) -> Mapping[str, Definition]:
    return {each.name: each for each in definitions}


def _definitions(registry: CollectorRegistry) -> Iterator[Definition]:
    collectors: dict[str, Any] = {}
    for each, names in registry._collector_to_names.items():  # no public way leads to label names and buckets
        collectors |= dict.fromkeys(names, each)
    for family in registry.collect():
        if not family.name.startswith(_FOREIGN):
            collector: Any = collectors.get(family.name)
            labels = tuple(getattr(collector, "_labelnames", ()))
            labels += ("python", "version") if family.type == "info" else ()
            bounds = tuple(map(floatToGoString, getattr(collector, "_upper_bounds", ())))
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            yield Definition(name, family.type, labels, family.documentation, bounds)


def _described() -> Iterator[Definition]:
    """The metrics of which a registry alone shows none: a machine may have no GPU, and settings name the disks."""
    for labels, collector in ((("gpu", "name"), GpuCollector()), (("place",), DiskCollector({}))):
        for metric in collector.describe():
            yield Definition(metric.name, metric.type, labels, metric.documentation)
