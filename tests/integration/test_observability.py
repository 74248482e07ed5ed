"""Dashboard, alerts, runbook and table of metrics agree with each other and with what the processes measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from support.tools import tool

from rewardloop_local.prune.settings import PruneSettings
from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_server.calls.vocabulary import QUEUE_LANES
from rewardloop_server.observe.door_metrics import DoorMetrics
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.settings import ServeSettings
from rewardloop_trainer.commands.dead_letters_settings import DeadLettersSettings
from rewardloop_trainer.commands.judge.settings import JudgeSettings
from rewardloop_trainer.judging.metrics import JudgeMetrics
from rewardloop_trainer.metrics import TrainerMetrics
from rewardloop_trainer.policy.settings import PolicyGateLimits
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.settings import TrainSettings

HERE = Path(__file__).parents[2] / "deploy" / "observability"


def _server() -> CollectorRegistry:
    metrics = ServerMetrics()
    metrics.announce("reward", ["RewardService/Score"], QUEUE_LANES)
    metrics.announce_scoring()
    DoorMetrics(metrics.registry)
    return metrics.registry


REGISTRIES = {
    "serving": _server,
    "trainer": lambda: TrainerMetrics().registry,
    "judge": lambda: JudgeMetrics().registry,
}


def _alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _promtool(*arguments: str, text: str | None = None) -> str:
    command = [tool("promtool", "prometheus"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=240, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_configuration_and_rules_are_sound() -> None:
    assert "FAILED" not in _promtool("check", "config", "prometheus.yml")
    _promtool("check", "rules", "alerts.yml")


def test_alertmanagers_example_knows_every_alert_that_it_names() -> None:
    example = yaml.safe_load((HERE / "alertmanager.yml").read_text())
    receivers = {each["name"] for each in example["receivers"]}
    routes = [example["route"], *example["route"]["routes"]]
    assert {each["receiver"] for each in routes} == receivers
    assert routes[1]["matchers"] == ['severity="page"']
    named = {
        name
        for each in re.findall(r"alertname=~?\W*([\w|]+)", str(example["inhibit_rules"]))
        for name in each.split("|")
    }
    assert named
    assert named <= set(_alerts())
    assert all(rule["equal"] == ["deployment"] for rule in example["inhibit_rules"])


def test_alerts_fire_where_they_should_and_not_otherwise() -> None:
    _promtool("test", "rules", "alerts_test.yml")


def test_each_alert_is_seen_to_fire() -> None:
    tested = (HERE / "alerts_test.yml").read_text()
    fired = set(re.findall(r'labels: \'\{alertname="(\w+)"', tested)) | {"RewardloopTargetDown"}
    assert fired == set(_alerts())


def test_each_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on() -> None:
    headings = re.findall(r"^## (\w+)$", (HERE / "RUNBOOK.md").read_text(), re.MULTILINE)
    alerts = _alerts()
    assert sorted(headings) == sorted(alerts)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["description"], name
        assert rule["annotations"]["runbook_url"] == f"deploy/observability/RUNBOOK.md#{name.lower()}"


def test_each_entry_of_the_runbook_says_what_it_means_where_to_look_and_what_to_do() -> None:
    entries = (HERE / "RUNBOOK.md").read_text().split("\n## ")[1:]
    for entry in entries:
        assert "- **Means**" in entry, entry
        assert "ook**" in entry, entry
        assert "o**:" in entry, entry


def test_the_flags_that_the_runbook_names_exist() -> None:
    named = set(re.findall(r"--([a-z][a-z.-]+)", (HERE / "RUNBOOK.md").read_text()))
    known = {"end", "model", "base", "previous"}  # of commands of other kinds, and of kubectl
    processes = (ServeSettings, TrainSettings, PolicyWorkerSettings, PruneSettings, DeadLettersSettings, JudgeSettings)
    for settings in processes:
        known |= {name.replace("_", "-") for name in settings.model_fields}
    known |= {f"reward.{name.replace('_', '-')}" for name in RewardHyperparameters.model_fields}
    known |= {f"policy.gate.{name.replace('_', '-')}" for name in PolicyGateLimits.model_fields}
    assert named <= known, named - known


def test_dashboard_and_table_of_metrics_are_up_to_date() -> None:
    command = [sys.executable, "-m", "rewardloop_observability", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("process", REGISTRIES)
def test_pages_pass_promtools_lint(process: str) -> None:
    assert _promtool("check", "metrics", text=generate_latest(REGISTRIES[process]()).decode()) == ""


@pytest.mark.parametrize("process", REGISTRIES)
def test_each_metric_has_a_help_text_and_a_unit_where_it_has_one(process: str) -> None:
    for family in REGISTRIES[process]().collect():
        assert family.documentation, family.name
        if family.name.startswith("rewardloop_"):
            assert family.documentation.endswith("."), family.name
            assert not re.search("_(ms|millis|milliseconds|percent|kib|mib|minutes|hours|time)$", family.name)
            if re.search("_(time|age|lag|wait|work)(_|$)", family.name):
                assert family.name.endswith("_seconds"), family.name
