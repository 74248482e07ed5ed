"""Several versions at once in a real serving process: which of them answers, and what nobody is told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.delta_graphs import publish_sum_delta, publish_sum_trunk
from support.processes import ServeProcess, serving
from support.reward_graphs import expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient, ScoreResult, UnknownVersion


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    publish_sum_trunk(store)
    return store


@pytest.fixture(params=["active", "bound"])
def server(
    request: pytest.FixtureRequest, store: ModelStore, tmp_path: Path, empty_redis_url: str
) -> Iterator[ServeProcess]:
    with serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log", "--adapters", request.param) as server:
        yield server


@pytest.fixture
def client(server: ServeProcess, store: ModelStore) -> Iterator[RewardloopClient]:
    """Version 1 is active; 2, over its graph, scores twice as high, and 3 ranks the other way round."""
    trunk = store.manifest("reward", 1)
    for factor in (2.0, -1.0):
        publish_sum_delta(store, trunk, factor=factor)
    with RewardloopClient(server.address, timeout_s=60) as client:
        yield client


def states(client: RewardloopClient) -> dict[str, str]:
    return {info.version: info.state for info in client.list_versions("reward")}


def figure(server: ServeProcess, name: str, **labels: str) -> float:
    page = urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics").read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def wait_until(server: ServeProcess, value: float, name: str, **labels: str) -> None:
    deadline = time.monotonic() + 30
    while (found := figure(server, name, **labels)) < value:
        assert time.monotonic() < deadline, f"{name}{labels} is {found}, not {value}"
        time.sleep(0.05)


def versions_by_prompt(client: RewardloopClient, prompts: list[str]) -> dict[str, str]:
    versions = {}
    for start in range(0, len(prompts), 500):
        part = prompts[start : start + 500]
        for prompt, result in zip(part, client.score_batch([(p, ["beta"]) for p in part]), strict=True):
            assert isinstance(result, ScoreResult)
            factor = {"1": 1.0, "2": 2.0, "3": -1.0}[result.model_version.version]
            assert result.scores[0].logit == pytest.approx(expected_logit(prompt, "beta", factor))
            versions[prompt] = result.model_version.version
    return versions


def test_canary_gets_its_share_and_a_prompt_always_the_same_version(client: RewardloopClient) -> None:
    share, prompts = 0.2, [f"prompt {i}" for i in range(2000)]
    client.set_canary("reward", "2", share=share)
    assert states(client) == {"1": "active", "2": "canary", "3": "stored"}
    first = versions_by_prompt(client, prompts)
    spread = math.sqrt(share * (1 - share) / len(prompts))
    assert sum(version == "2" for version in first.values()) / len(prompts) == pytest.approx(share, abs=4 * spread)
    assert versions_by_prompt(client, prompts) == first
    client.set_canary("reward", "2", share=0.5)
    second = versions_by_prompt(client, prompts)
    assert {p for p, v in first.items() if v == "2"} < {p for p, v in second.items() if v == "2"}
    client.set_canary("reward", None)
    assert set(versions_by_prompt(client, prompts).values()) == {"1"}


def test_shadow_is_compared_and_never_returned(server: ServeProcess, client: RewardloopClient) -> None:
    client.set_shadow("reward", "3", share=1.0)
    for i in range(50):
        result = client.score(f"prompt {i}", ["beta", "gamma"])
        assert result.model_version.version == "1"
        assert result.scores[0].logit == pytest.approx(expected_logit(f"prompt {i}", "beta"))
    wait_until(server, 100, "rewardloop_shadow_score_difference_count")
    assert figure(server, "rewardloop_shadow_score_difference_bucket", le="-5.0") == 100
    for order in ("best", "pair"):
        assert figure(server, "rewardloop_shadow_order_agreement_total", order=order, outcome="disagree") == 50
        assert figure(server, "rewardloop_shadow_order_agreement_total", order=order, outcome="agree") == 0
    client.set_shadow("reward", "2", share=1.0)
    client.score("prompt", ["beta", "gamma"])
    wait_until(server, 1, "rewardloop_shadow_order_agreement_total", order="best", outcome="agree")
    assert figure(server, "rewardloop_shadow_dropped_total") == 0


def test_shadow_reads_text_its_own_way(server: ServeProcess, client: RewardloopClient, store: ModelStore) -> None:
    other = publish_sum_version(store, factor=1.0, max_length=5)  # of the pair's five tokens and three markers, five
    client.set_shadow("reward", other.version, share=1.0)
    assert not client.score("alpha beta gamma", ["delta"] * 2).scores[0].truncated
    wait_until(server, 2, "rewardloop_shadow_score_difference_count")
    assert figure(server, "rewardloop_shadow_score_difference_bucket", le="-5.0") == 2


def test_warm_versions_may_be_pinned_by_number_or_digest(client: RewardloopClient) -> None:
    client.promote("reward", "2")
    digests = {info.version: info.digest for info in client.list_versions("reward")}
    for pin in ("1", digests["1"]):
        result = client.score("alpha", ["beta"], pin_version=pin)
        assert result.model_version.version == "1"
        assert result.scores[0].logit == expected_logit("alpha", "beta")
    with pytest.raises(UnknownVersion, match=r"version '3' is not warm here; warm: 2 \(active\), 1 \(warm\)"):
        client.score("alpha", ["beta"], pin_version="3")


def test_killed_server_comes_back_with_canary_and_shadow(server: ServeProcess, client: RewardloopClient) -> None:
    prompts = [f"prompt {i}" for i in range(100)]
    client.set_canary("reward", "2", share=0.3)
    client.set_shadow("reward", "3", share=0.5)
    before = versions_by_prompt(client, prompts)
    assert set(before.values()) == {"1", "2"}
    server.kill()
    server.start()
    server.wait_until_serving()
    deadline = time.monotonic() + 30
    while states(client) != {"1": "active", "2": "canary", "3": "shadow"}:
        assert time.monotonic() < deadline, states(client)
        time.sleep(0.05)
    assert versions_by_prompt(client, prompts) == before
