"""Reads what deploy/ holds: Dockerfiles, the compose file, manifests; and parses arguments as processes do."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rewardloop.process.settings import ProcessSettings, parse
from rewardloop_cli.main import app
from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_server.settings import ServeSettings
from rewardloop_trainer.settings import TrainSettings

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
BASE = DEPLOY / "kubernetes/base"
OVERLAYS = sorted(path.parent for path in (DEPLOY / "kubernetes/overlays").glob("*/kustomization.yaml"))

PROCESSES: dict[str, type[ProcessSettings]] = {
    "serve": ServeSettings,
    "train": TrainSettings,
    "policy-worker": PolicyWorkerSettings,
}


def settings_of(argv: Sequence[str]) -> Any:
    """What ``rewardloop ARGV`` would run with. Fails on a flag that its command does not have."""
    command, *flags = argv
    return parse(PROCESSES[command], flags, f"rewardloop {command}")


def check_command(argv: Sequence[str]) -> None:
    """Fails when the command line does not take ``rewardloop ARGV``; runs nothing: options are read before help."""
    done = CliRunner().invoke(app, [*argv, "--help"])
    assert done.exit_code == 0, done.output


def setting_names(command: str) -> set[str]:
    """The environment's names of a process's settings."""
    return {f"REWARDLOOP_{name.upper()}" for name in PROCESSES[command].model_fields}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of a Dockerfile, continued lines joined. ``stage``: counted from 0."""

    stage: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of the JSON form, its strings."""
        loaded = yaml.safe_load(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return [str(word) for word in loaded]


def instructions(dockerfile: Path) -> list[Instruction]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        stage += name == "FROM"
        found.append(Instruction(stage, name, text.strip()))
    return found


def last_stage(dockerfile: Path, name: str) -> list[Instruction]:
    """Those called ``name`` of the image that is kept."""
    every = instructions(dockerfile)
    return [each for each in every if each.stage == every[-1].stage and each.name == name]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    return loaded


def documents(directory: Path) -> list[dict[str, Any]]:
    """Every manifest of a directory as it is written."""
    files = [path for path in sorted(directory.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [each for path in files for each in yaml.safe_load_all(path.read_text()) if each]


def rendered(overlay: Path) -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send, by kubectl's own kustomize."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; Debian's is too old for components")
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(manifests: Sequence[dict[str, Any]], *kinds: str) -> Iterator[dict[str, Any]]:
    return (each for each in manifests if each["kind"] in kinds)


def named(manifests: Sequence[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name)


def workloads(manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(of_kind(manifests, "Deployment", "StatefulSet"))


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def is_ours(workload: dict[str, Any]) -> bool:
    return workload["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") == "rewardloop"
