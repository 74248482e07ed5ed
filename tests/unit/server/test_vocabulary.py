"""What is counted, what is announced and what alerts and the dashboard ask for are the same words."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry

import rewardloop_policy
import rewardloop_server
from rewardloop.formats.vocabulary import SIGNAL_KINDS
from rewardloop.v1 import model_pb2
from rewardloop_server.calls import vocabulary
from rewardloop_server.calls.errors import RewardloopError, VersionRefused, errors_of
from rewardloop_server.device.kinds import PROVIDERS, DeviceKind
from rewardloop_server.doors.roles import ALLOWED
from rewardloop_server.observe.door_metrics import DoorMetrics
from rewardloop_server.observe.labelling_metrics import LabellingMetrics
from rewardloop_server.observe.metrics import LABEL_VALUES, ServerMetrics
from rewardloop_server.versions.residents import _STATES

ROOT = Path(__file__).parents[3]
# A version's times are not known before there is one, and a time of 0 would be shown as the year 1970.
NOT_ANNOUNCED = {"rewardloop_active_version_published_time_seconds", "rewardloop_active_version_activated_time_seconds"}
# Prometheus itself adds these to each series.
OF_THE_TARGET = {"instance", "job", "le"}


def shown(registry: CollectorRegistry) -> dict[str, dict[str, set[str]]]:
    """The labels and their values on a metrics page."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le":
                    found[name][label].add(value)
    return found


@pytest.fixture(scope="module")
def pages() -> list[dict[str, dict[str, set[str]]]]:
    """The pages of `rewardloop serve` and of the policy worker before their first request."""
    serving, worker = ServerMetrics(), ServerMetrics()
    services = (
        vocabulary.ACCESS_SERVICE,
        vocabulary.REWARD_SERVICE,
        vocabulary.FEEDBACK_SERVICE,
        vocabulary.LABELLING_SERVICE,
        vocabulary.OPERATIONS_SERVICE,
    )
    shared = (vocabulary.MODEL_SERVICE, vocabulary.POLICY_SERVICE)
    serving.announce("reward", vocabulary.methods_of(*services, *shared), vocabulary.QUEUE_LANES)
    serving.announce_scoring()
    serving.runs_by("onnx")
    worker.announce("policy", vocabulary.methods_of(*shared), [vocabulary.SAMPLING_LANE])
    worker.announce_sampling()
    for metrics in (serving, worker):
        DoorMetrics(metrics.registry)
    LabellingMetrics(serving.registry)
    return [shown(metrics.registry) for metrics in (serving, worker)]


def test_every_value_that_may_be_counted_is_announced_and_no_other(pages: list[Any]) -> None:
    for metric, labels in LABEL_VALUES.items():
        if None in labels.values() or metric in NOT_ANNOUNCED:
            continue
        for label, values in labels.items():
            announced = set().union(*(page[metric][label] for page in pages))
            assert announced == set(values or ()), (metric, label)


def test_reasons_of_refused_versions_are_those_of_the_errors_that_loading_raises(pages: list[Any]) -> None:
    reasons = {error.reason for error in errors_of(VersionRefused)}
    assert reasons == {"CORRUPT_VERSION", "UNSAFE_VERSION", "UNTRUSTED_VERSION", "NOT_LOADABLE"}
    assert pages[0]["rewardloop_versions_refused_total"]["reason"] == reasons


def labels_in_code() -> Iterator[tuple[str, str, str, str]]:
    """Each ``<metric>.labels(label="value")`` of the serving processes: where, metric's attribute, label and value."""
    for package in (rewardloop_server, rewardloop_policy):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr != "labels" or not isinstance(node.func.value, ast.Attribute):
                    continue
                for keyword in node.keywords:
                    if isinstance(keyword.value, ast.Constant):
                        where = f"{path.name}:{node.lineno}"
                        yield where, node.func.value.attr, str(keyword.arg), str(keyword.value.value)


def test_values_written_in_code_are_defined() -> None:
    names = {
        field.name: field.metadata["name"]
        for owner in (ServerMetrics, DoorMetrics)
        for field in fields(owner)
        if "name" in field.metadata
    }
    found = list(labels_in_code())
    assert found
    for where, attribute, label, value in found:
        assert value in (LABEL_VALUES[names[attribute]][label] or (value,)), where


def matchers(text: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and each value that a query's matchers name; variables and patterns are left out."""
    for metric, inside in re.findall(r"(rewardloop_\w+)\{([^}]*)\}", text):
        name = metric if metric in LABEL_VALUES else re.sub(r"_(bucket|count|sum)$", "", metric)
        if name not in LABEL_VALUES:
            continue
        for label, values in re.findall(r'(\w+)\s*[=!]=?~?\s*"([^"]*)"', inside):
            for value in [] if "$" in values else values.split("|"):
                yield name, label, value


def queries() -> Iterator[str]:
    def of_panels(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("expr"), str):
                yield node["expr"]
            for each in node.values():
                yield from of_panels(each)
        elif isinstance(node, list):
            for each in node:
                yield from of_panels(each)

    folder = ROOT / "deploy" / "observability"
    yield from of_panels(yaml.safe_load((folder / "alerts.yml").read_text()))
    yield from of_panels(json.loads((folder / "dashboard.json").read_text()))


def test_alerts_and_dashboard_ask_for_defined_values() -> None:
    asked = {found for query in queries() for found in matchers(query)}
    assert ("rewardloop_feedback_events_total", "outcome", "failed") in asked
    for metric, label, value in sorted(asked):
        if label not in OF_THE_TARGET:
            assert label in LABEL_VALUES[metric], (metric, label)
            assert value in (LABEL_VALUES[metric][label] or (value,)), (metric, label, value)


def test_words_fit_the_protos_and_each_other() -> None:
    methods = {method.removeprefix("/rewardloop.v1.") for method in ALLOWED}
    assert set(vocabulary.METHODS) == methods | {vocabulary.UNKNOWN_METHOD}
    assert {*SIGNAL_KINDS, "none"} == set(vocabulary.COUNTED_KINDS)
    states = {name.removeprefix("VERSION_STATE_").lower() for name, _ in model_pb2.VersionState.items()}
    assert set(_STATES) == states - {"unspecified", "stored", "warming"}
    assert set(PROVIDERS) == set(get_args(DeviceKind))
    assert {error.code.name for error in errors_of(RewardloopError)} < {code.name for code in grpc.StatusCode}
