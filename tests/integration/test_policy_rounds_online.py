"""Policy rounds by learning from own answers and thumbs, against a real server and worker; a server that goes away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.learning_runs import THREADS, learning_seed
from support.policy_rounds import GATE, Setting, fake_server, thumb_rows
from support.policy_versions import publish_policy, quick_policy
from support.processes import free_port, serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import Calibration, ModelStore
from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS
from rewardloop_client import RewardloopClient, Unreachable
from rewardloop_client.fake import FakeRewardloop
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.learning.run_rows import read_steps
from rewardloop_trainer.rounds.pauses import ServerAway

# Nothing but the score counts.
ONLINE = {
    "steps": 16,
    "prompts": 16,
    "responses": 6,
    "max_new_tokens": 8,
    "minibatch": 96,
    "epochs": 2,
    "learning_rate": 1e-2,
    "beta": 0.0,
    "rewards": {"missing_end_penalty": 0.0},
    "max_update_kl": 100.0,
    "human_share": 0.0,
    "critic": {"warmup_steps": 0, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Services:
    """A scoring service and a policy worker over one store."""

    store: ModelStore
    redis_url: str
    client: RewardloopClient


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Policy 1 says random bytes; the score grows with the number of words."""
    directory = tmp_path_factory.mktemp("services")
    store = ModelStore(directory / "models")
    publish_sum_version(store, calibration=Calibration(0.05))
    publish_policy(store, *quick_policy(learning_seed()))
    embedded = EmbeddedRedis(directory / "redis", fsync="everysec")
    embedded.start()
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "rewardloop_policy.app", "--store", store.url, "--redis-url", embedded.url]
    argv += ["--listen", address, "--metrics-port", str(free_port()), "--torch-threads", str(THREADS)]
    with (directory / "worker.log").open("ab") as log:
        worker = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    with (
        serving(directory / "models", embedded.url, directory / "serve.log", "--policy-address", address) as server,
        RewardloopClient(server.address) as client,
    ):
        server.wait_until_serving("rewardloop.v1.PolicyService")
        yield Services(store, embedded.url, client)
    worker.kill()
    worker.wait()
    embedded.stop()


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ONLINE_ALGORITHMS)
def test_a_round_learns_what_the_reward_model_likes_and_goes_live(
    services: Services, tmp_path: Path, algorithm: str
) -> None:
    learning = {"algorithm": algorithm, "online": ONLINE, "beta": 1.0, "sft_weight": 0.0}
    setting = Setting(tmp_path, services.redis_url, server=services.client, store=services.store, **learning)
    services.client.promote("policy", "1")  # from which the round starts, and which it may replace
    assert setting.round().run() == "promoted", setting.current.state
    live = services.client.get_version("policy").version
    manifest = services.store.manifest("policy", live)
    assert (manifest.parent, manifest.notes["method"]) == ("1", algorithm)
    figures = manifest.metrics
    assert figures["gate_win_rate"] > 0.7, figures
    assert figures["gate_candidate_reward"] > figures["gate_live_reward"]
    assert figures["train_steps"] == ONLINE["steps"]
    assert {"train_score", "train_kl", "train_entropy", "train_update_kl"} <= set(figures)
    assert ("train_explained_variance" in figures) == (algorithm == "ppo")
    report = setting.settings.work_dir / "reports" / f"policy-{setting.current.state.number}"
    steps = read_steps(report)
    assert [row.step for row in steps] == list(range(1, ONLINE["steps"] + 1))
    assert steps[-1].figures["gate_win_rate"] == figures["gate_win_rate"]
    assert (report / "report.png").exists()
    assert list(report.glob("events.out.tfevents.*"))


@pytest.mark.learning
def test_a_round_learns_from_thumbs_and_goes_live(services: Services, tmp_path: Path) -> None:
    learning = {"algorithm": "kto", "kto": {"learning_rate": 1e-2, "batch_thumbs": 8, "epochs": 12}}
    thumbs = thumb_rows(60, "a b,a b,", "aaaaaaaa")
    setting = Setting(
        tmp_path, services.redis_url, server=services.client, store=services.store, more=thumbs, choices=0, **learning
    )
    services.client.promote("policy", "1")
    assert setting.round().run() == "promoted", setting.current.state
    manifest = services.store.manifest("policy", services.client.get_version("policy").version)
    assert (manifest.parent, manifest.notes["method"]) == ("1", "kto")
    assert manifest.notes["parity"].startswith("not compared")
    assert manifest.metrics["gate_win_rate"] > 0.7, manifest.metrics
    assert manifest.metrics["heldout_accuracy"] > 0.9


class GoesAway(FakeRewardloop):
    """After the third request for scores nobody is there for one."""

    def score_batch(self, *groups: Any, **how: Any) -> Any:
        if self.attempts.count("score_batch") == 3:
            self.fail("score_batch", Unreachable("gone"), times=4)
        return super().score_batch(*groups, **how)


@pytest.mark.learning
def test_a_round_waits_for_a_server_that_goes_away_and_loses_no_step(tmp_path: Path, redis_url: str) -> None:
    online = {**ONLINE, "steps": 6, "prompts": 4, "responses": 4, "checkpoint_every_steps": 5}
    server = fake_server(GoesAway)
    gate = {**GATE, "least_win_rate": 0.0, "least_win_rate_lower": 0.0}  # six steps need not win
    whole = Setting(tmp_path / "whole", redis_url, algorithm="ppo", online=online, gate=gate)
    gap = Setting(tmp_path / "gap", redis_url, server=server, algorithm="ppo", online=online, gate=gate)
    assert whole.round().run() == "promoted"
    with pytest.raises(ServerAway):
        gap.round().run()
    assert gap.current.state.phase == "training"
    assert gap.round().run() == "promoted"
    # Three steps, four attempts in vain, the three steps that were left, and the gate.
    assert server.attempts.count("score_batch") == 3 + 4 + 3 + 1
    files = [setting.store.manifest("policy", 2).files["model.safetensors"] for setting in (whole, gap)]
    assert files[0] == files[1]


@pytest.mark.learning
def test_a_round_that_goes_too_far_says_so_and_its_gate_judges_the_policy_before(
    tmp_path: Path, redis_url: str
) -> None:
    online = {**ONLINE, "steps": 4, "prompts": 8, "max_kl": 0.2}
    gate = {**GATE, "least_win_rate": 0.0, "least_win_rate_lower": 0.0}
    setting = Setting(tmp_path, redis_url, algorithm="grpo", online=online, gate=gate)
    assert setting.round().run() == "promoted", setting.current.state
    manifest = setting.store.manifest("policy", 2)
    note = manifest.notes["taken_back"]
    assert note.startswith("learning ended early: after step ")
    assert "above online.max_kl, which allows 0.2" in note
    assert manifest.metrics["train_taken_back"] == 1.0
    assert manifest.metrics["train_end_kl"] <= manifest.metrics["train_max_kl"] == 0.2
    report = setting.settings.work_dir / "reports" / f"policy-{setting.current.state.number}"
    assert (report / "notes.txt").read_text() == f"{note}\n"
    sample = setting.metrics.registry.get_sample_value
    assert sample("rewardloop_trainer_steps_taken_back_total") == 1.0
    assert sample("rewardloop_trainer_max_kl") == 0.2
