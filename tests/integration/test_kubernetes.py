"""Kubernetes manifests agree with the processes that they run, and with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deploy_files import (
    BASE,
    DEPLOY,
    OVERLAYS,
    check_command,
    container,
    documents,
    is_ours,
    named,
    of_kind,
    rendered,
    setting_names,
    settings_of,
    workloads,
)

from rewardloop_policy.settings import PolicyWorkerSettings
from rewardloop_server.doors.listen import refusal
from rewardloop_server.observe.metrics import ServerMetrics
from rewardloop_server.serving import SERVICES

Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[BASE, *OVERLAYS], ids=lambda path: path.name)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """The base as it is written, each overlay as kustomize renders it."""
    directory: Path = request.param
    return documents(directory) if directory == BASE else rendered(directory)


def _settings(workload: dict[str, Any]) -> Any:
    return settings_of(container(workload)["args"])


def _ports(workload: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def _ours(manifests: Manifests) -> list[dict[str, Any]]:
    found = [each for each in workloads(manifests) if is_ours(each)]
    assert len(found) == 3
    return found


def _cores(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _selects(selector: dict[str, str], workload: dict[str, Any]) -> bool:
    return selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def test_processes_run_with_real_settings_on_the_ports_that_they_declare(manifests: Manifests) -> None:
    for workload in _ours(manifests):
        command, settings, ports = container(workload)["args"][0], _settings(workload), _ports(workload)
        assert settings.metrics_host == "0.0.0.0"
        assert settings.metrics_port == ports["metrics"]
        annotations = workload["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(settings.metrics_port)
        if command != "train":
            assert settings.listen == f"0.0.0.0:{ports['grpc']}"
        names = {env["name"] for env in container(workload)["env"]}
        assert names <= setting_names(command) | {"PYTORCH_ALLOC_CONF"}
        assert "REWARDLOOP_REDIS_URL" in names


def test_threads_fit_the_cpu_limit(manifests: Manifests) -> None:
    for workload in _ours(manifests):
        settings, limit = _settings(workload), _cores(container(workload)["resources"]["limits"]["cpu"])
        threads = settings.intra_op_threads if hasattr(settings, "intra_op_threads") else settings.torch_threads
        assert 1 <= threads <= limit


def test_probes_ask_for_services_that_exist(manifests: Manifests) -> None:
    known = {"serve": {service.name for service in SERVICES}, "policy-worker": {"PolicyService", "ModelService"}}
    for workload in _ours(manifests):
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container(workload).get(kind)
            if probe is None:
                assert (container(workload)["args"][0], kind) == ("train", "readinessProbe")
            elif "grpc" in probe:
                assert probe["grpc"]["port"] == _ports(workload)["grpc"]
                service = probe["grpc"]["service"].removeprefix("rewardloop.v1.")
                assert service in known[container(workload)["args"][0]]
            elif "exec" in probe:
                program, *argv = probe["exec"]["command"]
                assert program == "rewardloop"
                check_command(argv)
                assert f"--server=127.0.0.1:{_ports(workload)['grpc']}" in argv
                assert (
                    argv[argv.index("health") + 1].removeprefix("rewardloop.v1.")
                    in known[container(workload)["args"][0]]
                )
                assert probe["timeoutSeconds"] >= 10  # a Python starts for each
            else:
                assert (probe["httpGet"]["path"], probe["httpGet"]["port"]) == ("/metrics", "metrics")


def test_a_pod_is_given_the_time_to_drain(manifests: Manifests) -> None:
    for workload in _ours(manifests):
        settings, pod = _settings(workload), workload["spec"]["template"]["spec"]
        if hasattr(settings, "drain_grace_s"):
            _, slept = container(workload)["lifecycle"]["preStop"]["exec"]["command"]
            assert pod["terminationGracePeriodSeconds"] >= float(slept) + settings.drain_grace_s + 5
            assert settings.max_connection_age_s > 0
            assert refusal(settings.listen, settings) is None
        else:
            assert pod["terminationGracePeriodSeconds"] >= 60


def test_paths_are_mounted_and_only_the_trainer_writes(manifests: Manifests) -> None:
    for workload in _ours(manifests):
        settings, pod = _settings(workload), workload["spec"]["template"]["spec"]
        mounts = {each["mountPath"]: each for each in container(workload)["volumeMounts"]}
        volumes = {each["name"] for each in pod["volumes"]}
        volumes |= {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())}
        assert {each["name"] for each in mounts.values()} == volumes
        is_trainer = workload["kind"] == "StatefulSet"
        assert mounts["/store"].get("readOnly", False) is not is_trainer
        assert "/tmp" in mounts
        for path in (str(settings.work_dir), settings.archive) if is_trainer else ():
            assert path.startswith("/state/")
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert named(manifests, "PersistentVolumeClaim", claim["claimName"])


def test_pods_meet_the_restricted_standard(manifests: Manifests) -> None:
    account = named(manifests, "ServiceAccount", "rewardloop")
    assert account["automountServiceAccountToken"] is False
    for workload in workloads(manifests):
        pod, inside = workload["spec"]["template"]["spec"], container(workload)
        assert pod["serviceAccountName"] == "rewardloop"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = inside["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(inside["resources"]["requests"])
        assert "memory" in inside["resources"]["limits"]


def test_selectors_select_and_services_lead_to_ports(manifests: Manifests) -> None:
    every = workloads(manifests)
    for workload in every:
        assert _selects(workload["spec"]["selector"]["matchLabels"], workload)
        for spread in workload["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            assert _selects(spread["labelSelector"]["matchLabels"], workload)
        if workload["kind"] == "StatefulSet":
            assert named(manifests, "Service", workload["spec"]["serviceName"])
    for service in of_kind(manifests, "Service"):
        (target,) = [each for each in every if _selects(service["spec"]["selector"], each)]
        for port in service["spec"]["ports"]:
            assert _ports(target)[port["targetPort"]] == port["port"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert len([each for each in every if _selects(budget["spec"]["selector"]["matchLabels"], each)]) == 1


def test_processes_name_services_that_exist(manifests: Manifests) -> None:
    by_command = {container(each)["args"][0]: _settings(each) for each in _ours(manifests)}
    for address in (by_command["serve"].policy_address, by_command["train"].server):
        found = re.fullmatch(r"dns:///([a-z-]+):(\d+)", address)
        assert found is not None, address
        service = named(manifests, "Service", found.group(1))
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["ports"][0]["port"] == int(found.group(2))


def test_network_policies_deny_by_default_and_allow_what_is_called(manifests: Manifests) -> None:
    policies = list(of_kind(manifests, "NetworkPolicy"))
    deny = named(manifests, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    by_name = {each["metadata"]["name"]: each for each in workloads(manifests)}

    def allows(direction: str, at: dict[str, Any], other: dict[str, Any], port: str) -> bool:
        side = "from" if direction == "ingress" else "to"
        target = at if direction == "ingress" else other
        for policy in policies:
            if not _selects(policy["spec"]["podSelector"].get("matchLabels", {}), at):
                continue
            for rule in policy["spec"].get(direction, ()):
                peers = rule.get(side, [{"podSelector": {}}])
                reaches = any(
                    _selects(p["podSelector"].get("matchLabels", {}), other) for p in peers if "podSelector" in p
                )
                ports = {each["port"] for each in rule["ports"]}
                if reaches and ports & {port, _ports(target)[port]}:
                    return True
        return False

    server, worker, trainer = (by_name[f"rewardloop-{name}"] for name in ("server", "policy-worker", "trainer"))
    flows = [(server, worker, "grpc"), (trainer, server, "grpc")]
    if redis := by_name.get("rewardloop-redis"):
        flows += [(each, redis, "redis") for each in (server, worker, trainer)]
    for source, target, port in flows:
        assert allows("egress", source, target, port)
        assert allows("ingress", target, source, port)
    assert not allows("ingress", trainer, server, "metrics")
    assert not allows("ingress", worker, trainer, "grpc")
    for policy in policies:
        for rule in policy["spec"].get("ingress", ()):
            for port in rule["ports"]:
                selected = [e for e in by_name.values() if _selects(policy["spec"]["podSelector"]["matchLabels"], e)]
                assert selected
                assert all(port["port"] in _ports(each) for each in selected)


def test_the_autoscaler_reads_a_metric_that_the_adapter_makes_of_a_real_one(manifests: Manifests) -> None:
    adapter = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    scaler = named(manifests, "HorizontalPodAutoscaler", "rewardloop-server")["spec"]
    pods = next(each["pods"] for each in scaler["metrics"] if each["type"] == "Pods")
    assert pods["metric"]["name"] == rule["name"]["as"]
    metric = ServerMetrics().queue_tokens
    assert rule["seriesQuery"].startswith(f"{metric._name}{{lane=")
    assert metric._labelnames == ("lane",)
    target = scaler["scaleTargetRef"]
    assert "replicas" not in named(manifests, target["kind"], target["name"])["spec"]
    assert 2 <= scaler["minReplicas"] <= scaler["maxReplicas"]


def test_prometheus_gives_each_pod_the_job_name_that_compose_gives_it(manifests: Manifests) -> None:
    (job,) = yaml.safe_load((DEPLOY / "kubernetes/prometheus-scrape.yaml").read_text())
    assert job["kubernetes_sd_configs"][0]["namespaces"]["names"] == ["rewardloop"]
    rule = next(each for each in job["relabel_configs"] if each.get("target_label") == "job")
    compose = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    named_there = {each["job_name"] for each in compose["scrape_configs"]}
    found = set()
    for workload in _ours(manifests):
        template = workload["spec"]["template"]["metadata"]
        assert template["annotations"]["prometheus.io/scrape"] == "true"
        matched = re.fullmatch(rule["regex"], template["labels"]["app.kubernetes.io/name"])
        assert matched is not None
        found.add(matched.group(1))
    assert found == named_there


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_what_is_applied_speaks_tls_and_asks_for_tokens(overlay: Path) -> None:
    manifests = rendered(overlay)
    for workload in _ours(manifests):
        settings = _settings(workload)
        mounted = {each["mountPath"] for each in container(workload)["volumeMounts"]}
        secrets = {v["secret"]["secretName"] for v in workload["spec"]["template"]["spec"]["volumes"] if "secret" in v}
        assert secrets == {"rewardloop-tls", "rewardloop-callers"}
        paths = [settings.ca, settings.token_file] if workload["kind"] == "StatefulSet" else []
        if hasattr(settings, "insecure_listen"):
            assert not settings.insecure_listen
            paths += [settings.tls_cert, settings.tls_key, settings.callers]
        if hasattr(settings, "policy_ca"):
            assert settings.policy_server_name == "rewardloop-policy-worker"
            paths += [settings.policy_ca, settings.policy_token_file]
        assert paths
        assert all(str(path.parent) in mounted for path in paths)


def test_the_job_of_the_first_model_is_an_export_into_the_store() -> None:
    from rewardloop.process.settings import parse
    from rewardloop_trainer.commands.export_settings import ExportSettings

    (job, policy) = documents(DEPLOY / "kubernetes/components/first-model")
    command, *flags = container(job)["args"]
    settings = parse(ExportSettings, flags, "rewardloop export")
    assert (command, settings.model, settings.store) == ("export", "reward", "/store")
    assert _selects(policy["spec"]["podSelector"]["matchLabels"], job)
    assert container(job)["securityContext"]["readOnlyRootFilesystem"] is True
    claims = [volume.get("persistentVolumeClaim") for volume in job["spec"]["template"]["spec"]["volumes"]]
    assert {"claimName": "rewardloop-store"} in claims
    assert named(documents(BASE), "PersistentVolumeClaim", "rewardloop-store")


def test_the_operators_prometheus_gives_the_labels_that_the_scrape_entry_gives() -> None:
    (monitor,) = documents(DEPLOY / "kubernetes/components/prometheus-operator")
    (job,) = yaml.safe_load((DEPLOY / "kubernetes/prometheus-scrape.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    given = {rule["targetLabel"]: rule.get("regex") for rule in endpoint["relabelings"]}
    entry = {rule["target_label"]: rule.get("regex") for rule in job["relabel_configs"] if "target_label" in rule}
    assert given == {label: entry[label] for label in ("job", "deployment")}  # the operator sets namespace and pod
    for workload in _ours(documents(BASE)):
        assert endpoint["port"] in _ports(workload)
        assert _selects(monitor["spec"]["selector"]["matchLabels"], workload)


GPU_OVERLAYS = [each for each in OVERLAYS if each.name.startswith("gpu")]


def _gpus(workload: dict[str, Any]) -> dict[str, str]:
    resources = container(workload)["resources"]
    found = {name: count for name, count in resources["limits"].items() if name.startswith("nvidia.com/")}
    assert found.items() <= resources["requests"].items()
    return found


@pytest.mark.parametrize("overlay", GPU_OVERLAYS, ids=lambda path: path.name)
def test_a_gpu_overlay_gives_each_process_its_share_and_needs_no_further_one_to_roll(overlay: Path) -> None:
    resources = {
        "gpu": ("nvidia.com/gpu", "nvidia.com/gpu"),
        "gpu-mig": ("nvidia.com/mig-1g.18gb", "nvidia.com/mig-4g.71gb"),
        "gpu-shared": ("nvidia.com/gpu.shared", "nvidia.com/gpu.shared"),
    }
    serving, training = resources[overlay.name]
    for workload in _ours(rendered(overlay)):
        is_trainer = workload["kind"] == "StatefulSet"
        assert _gpus(workload) == {training if is_trainer else serving: "1"}
        assert "cuda" in container(workload)["image"]
        settings = _settings(workload)
        if isinstance(settings, PolicyWorkerSettings) or hasattr(settings, "device"):
            assert settings.device == "cuda"
        if not is_trainer:
            assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("overlay", GPU_OVERLAYS, ids=lambda path: path.name)
def test_gradients_are_exchanged_through_a_shared_memory_of_their_own(overlay: Path) -> None:
    (trainer,) = [each for each in _ours(rendered(overlay)) if each["kind"] == "StatefulSet"]
    volumes = {each["name"]: each for each in trainer["spec"]["template"]["spec"]["volumes"]}
    (mount,) = [each for each in container(trainer)["volumeMounts"] if each["mountPath"] == "/dev/shm"]
    assert volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"


def test_processes_that_share_a_gpu_have_shares_that_fit_together() -> None:
    gigabytes = 80.0
    manifests = rendered(DEPLOY / "kubernetes/overlays/gpu-shared")
    taken = 0.0
    for workload in _ours(manifests):
        environment = {each["name"]: each.get("value", "") for each in container(workload)["env"]}
        if share := environment.get("PYTORCH_ALLOC_CONF"):
            taken += gigabytes * float(share.removeprefix("per_process_memory_fraction:"))
        else:  # the live graph and the one that is being loaded, on each replica
            scaler = named(manifests, "HorizontalPodAutoscaler", "rewardloop-server")["spec"]
            assert _settings(workload).device_memory_gb > 0
            taken += 2 * scaler["maxReplicas"] * _settings(workload).device_memory_gb
    assert taken <= 0.95 * gigabytes
