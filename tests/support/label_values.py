"""The values that the labels of rewardloop's metrics can have."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import grpc

from rewardloop.formats.vocabulary import LANES
from rewardloop.v1 import feedback_pb2, model_pb2, policy_pb2, reward_pb2
from rewardloop_observability.definitions import client_metrics, serving_metrics, trainer_metrics
from rewardloop_server.observe import metrics as serving
from rewardloop_trainer import metrics as trainer

# Callers, versions and machines decide the values of these labels.
_OPEN = frozenset({"model", "version", "digest", "slice", "caller", "gpu", "name", "python"})


def label_values() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """For each metric, the labels that have a closed vocabulary, each with all of its values."""
    metrics = {**client_metrics(), **trainer_metrics(), **serving_metrics()}
    announced, defined = _announced(), {**_defined(serving), **_defined(trainer)}
    found: dict[str, dict[str, frozenset[str]]] = {}
    for name, metric in metrics.items():
        values = {**announced.get(name, {}), **defined.get(name, {})}
        if "method" in metric.labels:
            values["method"] = _methods()
        if "code" in metric.labels:  # the relay hands on any status that a policy worker answers
            values["code"] = frozenset(code.name for code in grpc.StatusCode)
        if metric.bounds:
            values["le"] = frozenset(metric.bounds)
        found[name] = {label: each for label, each in values.items() if label not in _OPEN}
    return found


def _announced() -> dict[str, dict[str, frozenset[str]]]:
    """The values that the metrics pages show from the start."""
    server = serving.ServerMetrics()
    server.announce("reward", sorted(_methods()), LANES)
    server.announce_scoring()
    found: dict[str, dict[str, frozenset[str]]] = {}
    for registry in (server.registry, trainer.TrainerMetrics().registry):
        for family in registry.collect():
            values = found.setdefault(family.name + ("_total" if family.type == "counter" else ""), {})
            for sample in family.samples:
                for label, value in sample.labels.items():
                    values[label] = values.get(label, frozenset()) | {value}
    return found


def _defined(module: object) -> dict[str, dict[str, frozenset[str]]]:
    """The values that a module of metrics defines, by the full name of the metric."""
    definitions: Mapping[str, Mapping[str, Collection[str] | None]] = getattr(module, "LABEL_VALUES", {})
    return {
        metric: {label: frozenset(values) for label, values in labels.items() if values is not None}
        for metric, labels in definitions.items()
    }


def _methods() -> frozenset[str]:
    """All RPCs, as ``RewardService/Score``."""
    files = (feedback_pb2, model_pb2, policy_pb2, reward_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return frozenset(f"{service.name}/{method.name}" for service in services for method in service.methods)
