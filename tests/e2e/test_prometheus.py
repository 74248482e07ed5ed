"""A real Prometheus scrapes a real deployment, and is asked what the dashboard and the alerts ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.processes import free_port
from support.signals import choice, put
from support.tiny_encoder import save_tiny_encoder
from support.tools import tool

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop_client import InvalidRequest, RewardloopClient, RewardloopError
from rewardloop_local.redis_server import EmbeddedRedis

# Its processes start together on few cores.
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

HERE = Path(__file__).parents[2] / "deploy" / "observability"
SIGNALS = 300
# Series of a GPU, of a certificate, of a spool, of a judge, of mixtures and of runs that are stuck: not everywhere.
NOT_EVERYWHERE = re.compile("rewardloop_(gpu|certificate|spool|judge|mixture|below_floor|version_stuck)_")


@dataclass
class Prometheus:
    address: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now. Raises AssertionError where it is none."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}", timeout=30) as answer:
                result = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise ConnectionError("Prometheus is not ready yet") from error
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return result if isinstance(result, list) else [result]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]


def until(condition: Callable[[], bool], patience_s: float = 60.0, why: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def page(port: int) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def ports(directory: Path) -> Iterator[dict[str, int]]:
    """Metrics ports of what `rewardloop up` runs, by job, once the trainer's first round is live."""
    base = save_tiny_encoder(directory / "base")
    publish_policy(ModelStore(directory / "data" / "models"), small_llama(), byte_encoder())
    embedded = EmbeddedRedis(directory / "redis", fsync="everysec")
    embedded.start()
    found = {job: free_port() for job in ("rewardloop-server", "rewardloop-policy", "rewardloop-trainer")}
    address = f"127.0.0.1:{free_port()}"
    with redis.Redis.from_url(embedded.url) as connected:
        connected.xadd(keys.FEEDBACK_STREAM, {"event": b"no signal", "id": "x"})  # a dead letter
        put(connected, *(choice(i) for i in range(SIGNALS)))
    settings = {
        "data": directory / "data",
        "redis-url": embedded.url,
        "listen": address,
        "policy-listen": f"127.0.0.1:{free_port()}",
        "metrics-port": found["rewardloop-server"],
        "policy-metrics-port": found["rewardloop-policy"],
        "trainer-metrics-port": found["rewardloop-trainer"],
        "reward-base": base,
        "export-args": "--heads 2",
        "serve-args": "--intra-op-threads 1 --no-spin",
        "policy-args": "--max-new-tokens 8",
        "train-args": f"--no-policy-rounds --reward-min-signals {SIGNALS} --torch-threads 1 --flush-age-s 0.2"
        " --retry-first-s 0.5 --reward.learning-rate 0.001 --reward.gate-prompts 5 --reward.gate-margin 0.05",
        "log-format": "json",
        "gateway-listen": "",
    }
    argv = [sys.executable, "-m", "rewardloop_local.up", *(f"--{name}={value}" for name, value in settings.items())]
    with (directory / "up.log").open("ab") as log:
        up = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        with RewardloopClient(address) as client:
            try:
                client.wait_until_active("reward", "2", timeout_s=400)
            except RewardloopError as error:
                logs = [directory / "up.log", *(directory / "data" / "logs").glob("*.log")]
                raise AssertionError("\n".join(path.read_text()[-5000:] for path in logs)) from error
            client.generate("question 3", candidates=2)
            client.score("question 3", ["good answer 1", "poor answer 2"])
            with pytest.raises(InvalidRequest):
                client.score("", [""])
        yield found
    finally:
        up.terminate()
        up.wait(60)
        embedded.stop()


@pytest.fixture(scope="module")
def prometheus(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the shipped configuration, but for addresses and pace; it has scraped everything twice."""
    directory = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(HERE / name) for name in config["rule_files"]]
    assert {job["job_name"] for job in config["scrape_configs"]} == set(ports)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    found = Prometheus(f"127.0.0.1:{free_port()}")
    argv = [tool("prometheus", "prometheus"), "--config.file", str(directory / "prometheus.yml")]
    argv += ["--storage.tsdb.path", str(directory / "data"), "--web.listen-address", found.address]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    def has_scraped() -> bool:
        assert process.poll() is None, (directory / "log").read_text()
        try:
            return len(found.ask("count_over_time(up[1m]) > 1 and up == 1")) == len(ports)
        except OSError:
            return False  # not listening yet: the deadline decides

    until(has_scraped, why=(directory / "log").read_text)
    yield found
    process.terminate()
    process.wait(30)


def _panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((HERE / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "30s")
            yield panel["title"], re.sub(r"\$\w+", ".*", expression)


def _alerts() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


def operands(expression: str) -> list[str]:
    """What an alert compares, without the comparisons: of `a > 1 and (b) == 0`, a and (b)."""
    depth, start, found = 0, 0, []
    compared = False
    for match in re.finditer(r'"[^"]*"|[({\[]|[)}\]]|\s(?:and|unless)\s(?:on\s\([^)]*\)\s)?|[<>=!]=|[<>]', expression):
        mark = match.group()
        if mark[0] == '"':
            continue
        if mark in tuple("({[)}]"):
            depth += 1 if mark in "({[" else -1
        elif depth == 0 and mark.strip().startswith(("and", "unless")):
            if not compared:
                found.append(expression[start : match.start()])
            start, compared = match.end(), False
        elif depth == 0 and not compared:
            found.append(expression[start : match.start()])
            compared = True
    return [each.strip() for each in (found if compared else [*found, expression[start:]])]


def test_operands_are_what_is_compared() -> None:
    assert operands('max(a{b="x > y"}) > 2 * 3 and min(c - d) >= 0') == ['max(a{b="x > y"})', "min(c - d)"]
    assert operands("(sum(a) or vector(0)) == 0") == ["(sum(a) or vector(0))"]
    assert operands("a == 0 and on (d) max by (d) (b) > 0") == ["a", "max by (d) (b)"]
    assert operands("sum(a) / sum(b)") == ["sum(a) / sum(b)"]


def _all_answer(prometheus: Prometheus, expressions: list[tuple[str, str]]) -> None:
    """Each gives data, within a minute, but for those of hours ago."""
    silent = [each for each in expressions if not NOT_EVERYWHERE.search(each[1]) and " offset " not in each[1]]
    assert silent

    def all_answered() -> bool:
        silent[:] = [(name, expression) for name, expression in silent if not prometheus.ask(expression)]
        return not silent

    until(all_answered, why=lambda: silent)


def test_each_panel_of_the_dashboard_shows_data(prometheus: Prometheus) -> None:
    _all_answer(prometheus, list(_panels()))


def test_each_alert_has_what_it_asks_for(prometheus: Prometheus) -> None:
    for _, expression in _alerts():
        prometheus.ask(expression)
    _all_answer(prometheus, [(name, part) for name, expression in _alerts() for part in operands(expression)])


def test_rules_are_evaluated_and_only_what_happened_is_alarming(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] == "ok" for rule in rules()), why=rules)
    alarmed = {rule["name"] for rule in rules() if rule.get("alerts")}
    # The dead letter came before the first scrape, and an increase needs two.
    assert alarmed <= {
        "RewardloopDeadLetters",
        "RewardloopLatencyBudgetBurnsFast",
        "RewardloopLatencyBudgetBurnsSlowly",
    }


def test_what_happened_is_what_is_measured(prometheus: Prometheus, ports: dict[str, int]) -> None:
    def value(expression: str) -> float:
        (found,) = prometheus.ask(expression)
        return float(found["value"][1])

    assert value('rewardloop_trainer_rounds_total{model="reward", outcome="promoted"}') == 1
    assert value("rewardloop_trainer_dead_letters_total") == 1
    assert value("max(rewardloop_dead_letters)") == 1
    assert value('sum(rewardloop_trainer_signals_total{kind="choice"})') == SIGNALS
    assert value('sum(rewardloop_trainer_source_signals_total{source="human"})') == SIGNALS
    assert value('rewardloop_trainer_steps_total{model="reward"}') > 0
    assert value('rewardloop_trainer_gradient_norm{model="reward"}') > 0
    assert value('rewardloop_trainer_reward_gate{figure="gate_parity"}') < 1e-4
    assert value('rewardloop_active_version{model="reward", version="2"}') == 1
    assert value('time() - rewardloop_active_version_published_time_seconds{model="reward"}') < 300
    assert value('rewardloop_requests_total{code="INVALID_ARGUMENT", method="RewardService/Score"}') == 1
    assert value("rewardloop_trainer_leading") == 1
    assert value('sum(rewardloop_resident_versions{model="policy", role="active"})') == 1


@pytest.mark.parametrize("job", ["rewardloop-server", "rewardloop-policy", "rewardloop-trainer"])
def test_pages_of_running_processes_pass_promtools_lint(ports: dict[str, int], job: str) -> None:
    command = [tool("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(command, input=page(ports[job]), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("log", "event"), [("serve", "listening"), ("policy-worker", "version switched"), ("train", "round begins")]
)
def test_each_line_of_a_processs_log_is_json(ports: dict[str, int], directory: Path, log: str, event: str) -> None:
    lines = [json.loads(line) for line in (directory / "data" / "logs" / f"{log}.log").read_text().splitlines()]
    assert event in {line["event"] for line in lines}
