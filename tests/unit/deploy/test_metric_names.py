"""Dashboard, alerts, runbook and adapter ask only for metrics, labels and values that exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.label_values import label_values
from support.promql import Matcher, Selector, grouping_labels, selectors, template_labels

from rewardloop_observability.definitions import (
    Definition,
    client_metrics,
    judge_metrics,
    serving_metrics,
    trainer_metrics,
)

REPOSITORY = Path(__file__).parents[3]
OBSERVABILITY = REPOSITORY / "deploy/observability"
ALERTS = OBSERVABILITY / "alerts.yml"
ADAPTER = REPOSITORY / "deploy/kubernetes/prometheus-adapter.yaml"
QUERYING = [ALERTS, OBSERVABILITY / "alerts_test.yml", OBSERVABILITY / "dashboard.json", ADAPTER]
PAGES = [
    path
    for folder in ("", "client", "server", "trainer", "deploy", "docs", "tests", "protos")
    for path in sorted((REPOSITORY / folder).glob("*.md" if not folder else "**/*.md"))
    if "node_modules" not in path.parts
]

METRICS = {**client_metrics(), **judge_metrics(), **trainer_metrics(), **serving_metrics()}
VALUES = label_values()
JOBS = frozenset({"rewardloop-server", "rewardloop-policy", "rewardloop-trainer", "rewardloop-judge"})
# Prometheus, or its discovery of a cluster's pods, sets these on every series.
TARGET_LABELS = frozenset({"deployment", "job", "instance", "namespace", "pod"})
ALERT_LABELS = frozenset({"alertname", "alertstate", "severity"})
# In prose, names of packages look like names of metrics. The adapter gives its query a name for the autoscaler.
PACKAGES = {
    path.name for folder in ("client", "server", "trainer", "deploy") for path in (REPOSITORY / folder).iterdir()
}
OTHER_NAMES = PACKAGES | {rule["name"]["as"] for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]}


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document, from the outermost to the innermost."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _asked(path: Path) -> Iterator[Selector]:
    """The selectors of a file that name a metric of rewardloop or of Prometheus."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        texts = list(_texts(json.loads(content)))
    elif path.suffix in (".yml", ".yaml"):
        texts = list(_texts(yaml.safe_load(content)))
    else:
        texts = [content]
    for text in texts:
        for selector in selectors(text):
            if not selector.metric.startswith(("process_", "python_")) and selector.metric not in OTHER_NAMES:
                yield selector


def _definition(metric: str) -> Definition | None:
    """The metric that a name in a query belongs to: a histogram's buckets, sum and count are parts of it."""
    for suffix in ("", "_bucket", "_sum", "_count"):
        found = METRICS.get(metric.removesuffix(suffix)) if metric.endswith(suffix) else None
        if found is not None and (suffix == "" or found.kind == "histogram"):
            return found
    return None


def _recorded() -> dict[str, str]:
    """The recording rules: name and expression."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def _labels_of(selector: Selector) -> frozenset[str]:
    """The labels that series of this name can have. Raises KeyError for a name that does not exist."""
    if selector.metric == "ALERTS":
        return ALERT_LABELS | TARGET_LABELS | {"model", "reason"}
    if selector.metric in ("up", *_recorded()) or selector.metric.startswith(("process_", "python_")):
        return TARGET_LABELS | {"generation"}
    definition = _definition(selector.metric)
    if definition is None:
        raise KeyError(selector.metric)
    return TARGET_LABELS | set(definition.labels) | ({"le"} if selector.metric.endswith("_bucket") else set())


def problems_of(selector: Selector) -> Iterator[str]:
    """What in a selector does not exist."""
    try:
        labels = _labels_of(selector)
    except KeyError:
        yield f"there is no metric {selector.metric}"
        return
    definition = _definition(selector.metric)
    values = {"job": JOBS, **(VALUES[definition.name] if definition else {})}
    for matcher in selector.matchers:
        if matcher.label not in labels:
            yield f"{selector.metric} has no label {matcher.label}"
        elif matcher.label in values and not _is_possible(matcher, values[matcher.label]):
            yield f"{selector.metric} never has {matcher.label}{matcher.operator}{matcher.text!r}"


def _is_possible(matcher: Matcher, values: frozenset[str]) -> bool:
    return "$" in matcher.text or matcher.names_only(values)


@pytest.mark.parametrize("path", [*QUERYING, *PAGES], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_what_exists_is_asked_for(path: Path) -> None:
    asked = list(_asked(path))
    assert asked or path in PAGES
    # The rules' test shows that an alert leaves other jobs alone.
    other_job = Selector("up", (Matcher("job", "=", "another"), Matcher("instance", "=", "w")))
    assert [problem for selector in asked if selector != other_job for problem in problems_of(selector)] == []


def test_alerts_group_by_and_show_labels_that_their_metrics_have() -> None:
    for rule in _rules():
        labels = set().union(*map(_labels_of, selectors(rule["expr"])))
        assert grouping_labels(rule["expr"]) <= labels, rule
        assert set().union(*map(template_labels, _texts(rule.get("annotations", {})))) <= labels, rule


def test_panels_group_by_and_show_labels_that_their_metrics_have() -> None:
    for panel in json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            labels = set().union(*map(_labels_of, selectors(target["expr"])))
            assert grouping_labels(target["expr"]) <= labels, target
            assert template_labels(target.get("legendFormat", "")) <= labels, target


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ('rewardloop_versions_refused_total{reason="NOT_A_REASON"}', "never has reason='NOT_A_REASON'"),
        ('rewardloop_trainer_rounds_total{outcome=~"failed|lost"}', "never has outcome=~'failed|lost'"),
        ('rewardloop_request_seconds_bucket{le="0.26"}', "never has le='0.26'"),
        ('rewardloop_queue_tokens{model="reward"}', "has no label model"),
        ("rewardloop_queue_token", "there is no metric rewardloop_queue_token"),
        ('up{job="rewardloop-serving"}', "never has job='rewardloop-serving'"),
    ],
)
def test_what_does_not_exist_is_found(query: str, problem: str) -> None:
    assert [each for selector in selectors(query) for each in problems_of(selector)] == [
        problem if problem.startswith("there") else f"{next(selectors(query)).metric} {problem}"
    ]


@pytest.mark.parametrize(
    "query",
    [
        'rewardloop_requests_total{method="RewardService/Score", code!~"OK|CANCELLED"}',
        'rewardloop_trainer_policy_gate{figure=~"gate_win_rate.*|live_win_rate.*"}',
        'rewardloop_active_version{model=~"$model", version="3"}',
    ],
)
def test_what_exists_passes(query: str) -> None:
    assert [each for selector in selectors(query) for each in problems_of(selector)] == []
