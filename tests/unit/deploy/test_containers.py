"""Dockerfiles and the compose file agree with the processes that they run, and with each other."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deploy_files import (
    DEPLOY,
    DOCKERFILES,
    PROCESSES,
    REPOSITORY,
    check_command,
    compose,
    instructions,
    last_stage,
    setting_names,
    settings_of,
)

from rewardloop_server.doors.listen import refusal

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
NOT_SETTINGS = {"PATH", "PYTHONUNBUFFERED", "HF_HOME", "MPLCONFIGDIR"}
COMPOSE = compose()
OURS = {name: each for name, each in COMPOSE["services"].items() if each["image"].startswith("rewardloop-")}
RUNNING = {name: each for name, each in OURS.items() if "profiles" not in each}

parametrized = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


@parametrized
def test_an_image_is_pinned_and_runs_as_a_number_that_is_not_root(dockerfile: Path) -> None:
    arguments = dict(i.text.split("=", 1) for i in instructions(dockerfile) if i.name == "ARG" and "=" in i.text)
    stages: set[str] = set()
    for each in instructions(dockerfile):
        if each.name == "FROM":
            image, *alias = each.text.split(" AS ")
            if image not in stages:
                tag = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m.group(1)], image).partition(":")[2]
                assert re.match(r"\d+\.\d+\.\d+-", tag), image
            stages.update(alias)
    assert [each.text for each in last_stage(dockerfile, "USER")] == ["10001:10001"]


@parametrized
def test_an_image_holds_every_package_of_the_wheel(dockerfile: Path) -> None:
    copies = [each.text.split() for each in instructions(dockerfile) if each.name == "COPY" and each.stage == 0]
    copied = [source for *sources, _ in copies for source in sources]
    needed = [
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ]
    for path in needed:
        assert any(path == each or path.startswith(f"{each}/") for each in copied), path
        assert not _is_ignored(path), path
    assert not _is_ignored(f"requirements/{dockerfile.stem}.txt")
    for path in ("tests", ".git", ".venv", "deploy/kubernetes", "client/examples/javascript/node_modules"):
        assert _is_ignored(path), path


def _is_ignored(path: str) -> bool:
    """By .dockerignore: the last line that names the path, or a folder above it, decides."""
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        patterns = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch.fnmatchcase(each, p) and each.count("/") >= p.count("/") for each in parents for p in patterns):
            ignored = not line.startswith("!")
    return ignored


@parametrized
def test_an_images_command_health_check_and_environment_are_real(dockerfile: Path) -> None:
    (entry,) = last_stage(dockerfile, "ENTRYPOINT")
    (command,) = last_stage(dockerfile, "CMD")
    assert entry.words == ["rewardloop"]
    settings = settings_of(command.words)
    (health,) = last_stage(dockerfile, "HEALTHCHECK")
    program, *argv = yaml.safe_load(health.text[health.text.index("[") :])
    assert program == "rewardloop"
    check_command(argv)
    exposed = {int(port) for each in last_stage(dockerfile, "EXPOSE") for port in each.text.split()}
    assert settings.metrics_port in exposed
    names = {pair.partition("=")[0] for each in last_stage(dockerfile, "ENV") for pair in each.text.split()}
    runs = ("train", "policy-worker") if "trainer" in dockerfile.name else ("serve",)
    for name in names - NOT_SETTINGS:
        assert all(name in setting_names(process) for process in runs), name


@parametrized
def test_an_image_does_not_listen_on_every_address_unless_it_is_told_how_callers_are_kept_out(dockerfile: Path) -> None:
    (command,) = last_stage(dockerfile, "CMD")
    settings = settings_of(command.words)
    if hasattr(settings, "listen"):
        assert settings.listen.startswith("0.0.0.0:")
        assert "--tls-cert" in str(refusal(settings.listen, settings))


@pytest.mark.parametrize("name", RUNNING)
def test_a_service_of_compose_runs_with_real_settings(name: str) -> None:
    service = RUNNING[name]
    argv = service["command"]
    settings = settings_of(argv)
    assert set(service.get("environment", {})) <= setting_names(argv[0])
    assert settings.metrics_host == "0.0.0.0"
    if hasattr(settings, "listen"):
        assert settings.listen.startswith("0.0.0.0:")
        assert settings.drain_grace_s + 5 <= int(service["stop_grace_period"].removesuffix("s"))
    if "healthcheck" in service:
        check_command(service["healthcheck"]["test"][2:])
    mounts = {each.split(":")[1]: not each.endswith(":ro") for each in service["volumes"]}
    assert "/store" in mounts
    assert mounts["/store"] is (argv[0] == "train")
    if argv[0] == "train":
        assert str(settings.work_dir).startswith("/state/")
        assert settings.archive.startswith("/state/")
        assert mounts["/state"]
    assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])


def test_the_setup_services_of_compose_are_exports() -> None:
    from rewardloop.process.settings import parse
    from rewardloop_trainer.commands.export_settings import ExportSettings

    setup = [each for each in OURS.values() if "profiles" in each]
    for service in setup:
        program, command, *flags = service["entrypoint"]
        assert (program, command) == ("rewardloop", "export")
        assert parse(ExportSettings, [*flags, "--base", "some/base"], "rewardloop export").store == "/store"
    assert len(setup) == 2


def test_services_of_compose_find_each_other() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    server, trainer = settings_of(RUNNING["server"]["command"]), settings_of(RUNNING["trainer"]["command"])
    worker = settings_of(RUNNING["policy-worker"]["command"])
    assert trainer.server == f"server:{server.listen.rpartition(':')[2]}"
    assert server.policy_address == f"policy-worker:{worker.listen.rpartition(':')[2]}"
    for service in RUNNING.values():
        assert service["environment"]["REWARDLOOP_REDIS_URL"] == "redis://redis:6379/0"
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                path = DEPLOY / "compose" / source
                assert path.exists(), path
            else:
                assert source in COMPOSE["volumes"]
        if "build" in service:
            assert (DEPLOY / "compose" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_prometheus_scrapes_each_process_and_grafana_finds_its_files() -> None:
    scraped = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    targets = {
        target for job in scraped["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    }
    assert targets == {f"{name}:{settings_of(each['command']).metrics_port}" for name, each in RUNNING.items()}
    assert {each["command"][0] for each in RUNNING.values()} == set(PROCESSES)
    inside = [volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    assert set(scraped["rule_files"]) <= set(inside)
    provider = yaml.safe_load((DEPLOY / "compose/grafana/provisioning/dashboards/rewardloop.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1].startswith(folder) for volume in COMPOSE["services"]["grafana"]["volumes"])
