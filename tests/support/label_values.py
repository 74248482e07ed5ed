"""The values that the labels of rewardloop's metrics can have."""

from __future__ import annotations

from collections.abc import Mapping

from rewardloop_observability.definitions import client_metrics, judge_metrics, serving_metrics, trainer_metrics
from rewardloop_server.observe import metrics as serving
from rewardloop_trainer import metrics as trainer
from rewardloop_trainer.judging import metrics as judging


def label_values() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """For each metric, the labels that have a closed vocabulary, each with all of its values."""
    defined = {**judging.LABEL_VALUES, **trainer.LABEL_VALUES, **serving.LABEL_VALUES}
    found: dict[str, dict[str, frozenset[str]]] = {}
    for name, metric in {**client_metrics(), **judge_metrics(), **trainer_metrics(), **serving_metrics()}.items():
        found[name] = {label: frozenset(each) for label, each in defined.get(name, {}).items() if each is not None}
        if metric.bounds:
            found[name]["le"] = frozenset(metric.bounds)
    return found
