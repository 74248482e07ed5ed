"""What `rewardloop up` says of its addresses."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path

import typer

from rewardloop_cli import main
from rewardloop_local.plan import DeploymentPlan
from rewardloop_local.security import Security


def test_status_needs_no_flags_at_the_usual_addresses(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path)
    assert plan.status_command() == "rewardloop status"
    assert plan.metrics_pages() == ":9464 (server), :9465 (trainer), :9466 (policy worker)"
    usual = {name: each.default for name, each in inspect.signature(main.status).parameters.items()}
    assert usual == {
        "server": plan.listen,
        "server_metrics": f"http://127.0.0.1:{plan.metrics_port}/metrics",
        "trainer_metrics": f"http://127.0.0.1:{plan.trainer_metrics_port}/metrics",
    }


def test_status_gets_a_flag_for_each_address_that_differs(tmp_path: Path) -> None:
    one = DeploymentPlan(tmp_path, trainer_metrics_port=19465)
    assert one.status_command() == "rewardloop status --trainer-metrics 127.0.0.1:19465"
    every = DeploymentPlan(tmp_path, listen="127.0.0.1:60051", metrics_port=19464, trainer_metrics_port=19465)
    assert every.status_command() == (
        "rewardloop status --server 127.0.0.1:60051 --server-metrics 127.0.0.1:19464 --trainer-metrics 127.0.0.1:19465"
    )


def test_status_gets_the_credentials_of_the_processes(tmp_path: Path) -> None:
    security = Security(
        ca=tmp_path / "my ca.pem", token_file=tmp_path / "token", server_name="rewards", callers=tmp_path / "callers"
    )
    words = shlex.split(DeploymentPlan(tmp_path, listen="127.0.0.1:60051", security=security).status_command())
    access = ["--ca", str(tmp_path / "my ca.pem"), "--server-name", "rewards", "--token-file", str(tmp_path / "token")]
    assert words == ["rewardloop", *access, "status", "--server", "127.0.0.1:60051"]
    command = typer.main.get_command(main.app)
    assert {word for word in words[1:-3] if word.startswith("--")} <= {o for each in command.params for o in each.opts}


def test_a_page_that_is_switched_off_is_not_named(tmp_path: Path) -> None:
    plan = DeploymentPlan(tmp_path, metrics_port=0, trainer_metrics_port=0, policy_metrics_port=0)
    assert plan.metrics_pages() == "none"
    assert plan.status_command() == "rewardloop status"
