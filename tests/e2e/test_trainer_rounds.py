"""Reward rounds by a real trainer process, against a real server and a real Redis."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from support.learning_runs import THREADS, learning_seed
from support.processes import ServeProcess, serving
from support.signals import choice, put
from support.tiny_encoder import save_tiny_encoder

from rewardloop.formats.store import ADAPTER, Manifest, ModelStore, Trunk
from rewardloop.formats.text import Turn
from rewardloop.v1 import feedback_pb2
from rewardloop_client import RewardloopClient
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.commands.export import main as export
from rewardloop_trainer.evaluation.gate_anchor import GATE_ANCHOR
from rewardloop_trainer.reward.anchors import ANCHORS, shipped_anchors
from rewardloop_trainer.reward.calibrate import anchor_logits, fit_calibration
from rewardloop_trainer.reward.examples import collate
from rewardloop_trainer.reward.settings import RewardHyperparameters
from rewardloop_trainer.reward.start import start_from

DELTA = ("--reward.method", "lora", "--reward.delta", "--reward.learning-rate", "0.01", "--reward.lora.rank", "4")
DELTA_FILES = {ADAPTER, ANCHORS, GATE_ANCHOR, "tokenizer.json", "torch/heads.safetensors", "torch/lora.safetensors"}


# About 30 of 300 prompts are held out. Once a model makes no mistake, the next one is no better.
GATE = ("--reward.gate-prompts", "15", "--reward.gate-margin", "0.05")


def asked(number: int) -> feedback_pb2.FeedbackEvent:
    """Every choice is about a question of its own."""
    return choice(number, prompts=1_000_000)


@dataclass
class World:
    """A server with reward version 1 live, and what a trainer needs beside it."""

    directory: Path
    server: ServeProcess
    client: RewardloopClient
    redis: Any

    @property
    def store(self) -> ModelStore:
        return ModelStore(self.directory / "models")

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "work" / "state.json").read_text())["models"]["reward"]
        return found

    def trainer(self, *args: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "rewardloop_trainer", "--redis-url", self.server.redis_url]
        argv += ["--archive", str(self.directory / "ledger"), "--work-dir", str(self.directory / "work")]
        argv += ["--store", self.store.url, "--server", self.server.address, "--metrics-port", "0"]
        argv += ["--lock-ttl-s", "1", "--no-policy-rounds", "--reward-min-signals", "200"]
        argv += ["--torch-threads", str(THREADS), "--seed", str(learning_seed())]
        argv += ["--flush-age-s", "0.2", "--retry-first-s", "0.5", "--reward.learning-rate", "0.001", *GATE, *args]
        with (self.directory / "trainer.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return (self.directory / "trainer.log").read_text()

    def until(self, condition: Callable[[], bool], patience_s: float = 90.0) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def live(self) -> Manifest:
        """The served version's manifest, once its scores have been found to be those of its torch model."""
        version = self.client.get_version("reward").version
        start = start_from(self.store, version, RewardHyperparameters(), 0)
        responses = ["poor answer 3", "good answer 71", "good"]
        prompt = (Turn("user", "question 3"),)
        pairs = [start.encoder.pair(prompt, r) for r in responses]
        with torch.inference_mode():
            logits = start.model(*collate(pairs, start.encoder.format.pad)).mean(1)
        reply = self.client.score("question 3", responses)
        assert reply.model_version.version == version
        assert [s.logit for s in reply.scores] == pytest.approx(logits.tolist(), abs=1e-4)
        return self.store.manifest("reward", version)


@pytest.fixture(scope="module")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("first")
    base = save_tiny_encoder(directory / "base", learning_seed())
    assert export(["--base", str(base), "--store", str(directory / "models"), "--heads", "2"]) == 0
    return directory / "models"


@pytest.fixture
def world(tmp_path: Path, first_version: Path) -> Iterator[World]:
    shutil.copytree(first_version, tmp_path / "models")
    with world_of(tmp_path) as world:
        yield world


@contextmanager
def world_of(tmp_path: Path) -> Iterator[World]:
    """Over the store in ``models``."""
    embedded = EmbeddedRedis(tmp_path / "redis", fsync="everysec")
    embedded.start()
    with (
        serving(tmp_path / "models", embedded.url, tmp_path / "serve.log") as server,
        RewardloopClient(server.address) as client,
        redis.Redis.from_url(embedded.url) as connected,
    ):
        yield World(tmp_path, server, client, connected)
    embedded.stop()


@pytest.mark.learning
def test_round_learns_what_was_chosen_and_goes_live(world: World) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    assert world.trainer("--once").wait(120) == 0, world.log
    live = world.client.get_version("reward")
    assert live.version == "2", world.log
    manifest = world.store.manifest("reward", 2)
    assert manifest.parent == "1"
    assert manifest.data is not None
    assert (manifest.data.signals, len(manifest.data.arrivals)) == (300, 300)
    assert manifest.metrics["gate_candidate_accuracy"] > 0.95
    first = world.store.manifest("reward", 1)
    assert manifest.files[ANCHORS] == first.files[ANCHORS]  # the scale of version 1, on whichever machine it is trained
    assert not (world.directory / "work" / ANCHORS).exists()
    assert [m.notes["anchors"].split(",")[0] for m in (first, manifest)] == [str(shipped_anchors())] * 2
    assert manifest.notes["max_length"] == first.notes["max_length"]
    for version in (first, manifest):  # a threshold means the same in both
        assert version.calibration is not None
        start = start_from(world.store, version.version, RewardHyperparameters(), 0)
        logits = anchor_logits(start.model, start.encoder, shipped_anchors().anchors)
        scores = version.calibration.scale * logits + version.calibration.offset
        again = fit_calibration(scores)  # level 0 and deviation 1, outlying scores drawn in
        assert (again.offset, again.scale) == (pytest.approx(0.0, abs=0.1), pytest.approx(1.0, abs=0.1))
    poor, good = world.client.score("question 3", ["poor answer 9", "good answer 9"]).scores
    assert good.score > poor.score
    assert not list((world.directory / "work" / "rounds").iterdir())


@pytest.mark.learning
@pytest.mark.long
@pytest.mark.timeout(1200)  # several rounds, each of which is waited for
def test_delta_rounds_publish_adapters_over_one_trunk(world: World) -> None:
    first = world.store.manifest("reward", 1)
    trunk = Trunk("1", first.digest)

    put(world.redis, *(asked(i) for i in range(300)))
    assert world.trainer("--once", *DELTA).wait(240) == 0, world.log
    delta = world.live()
    assert (delta.version, delta.parent, delta.trunk, set(delta.files)) == ("2", "1", trunk, DELTA_FILES), world.log
    assert delta.metrics["gate_candidate_accuracy"] > 0.9
    assert delta.metrics["gate_parity"] <= 1e-4

    put(world.redis, *(asked(i) for i in range(300, 600)))
    assert world.trainer("--once", *DELTA).wait(240) == 0, world.log
    second = world.live()
    assert (second.version, second.parent, second.trunk, set(second.files)) == ("3", "2", trunk, DELTA_FILES), world.log
    assert second.metrics["gate_live_accuracy"] == pytest.approx(delta.metrics["gate_candidate_accuracy"], abs=0.1)

    put(world.redis, *(asked(i) for i in range(600, 900)))
    assert world.trainer("--once").wait(240) == 0, world.log
    merged = world.live()
    assert (merged.version, merged.parent, merged.trunk) == ("4", "3", None), world.log
    assert "model.onnx" in merged.files
    assert merged.metrics["gate_candidate_accuracy"] > 0.9


@pytest.mark.long
@pytest.mark.timeout(1200)  # several rounds, each of which is waited for
def test_first_delta_round_over_a_graph_without_adapter_inputs_publishes_one_that_has_them(tmp_path: Path) -> None:
    base = save_tiny_encoder(tmp_path / "base", learning_seed())
    store = ["--base", str(base), "--store", str(tmp_path / "models"), "--heads", "2"]
    assert export([*store, "--adapters", "none"]) == 0
    with world_of(tmp_path) as world:
        put(world.redis, *(asked(i) for i in range(300)))
        assert world.trainer("--once", *DELTA).wait(240) == 0, world.log
        assert "this run makes a whole version" in world.log
        whole = world.live()
        assert (whole.version, whole.trunk) == ("2", None), world.log
        put(world.redis, *(asked(i) for i in range(300, 600)))
        assert world.trainer("--once", *DELTA).wait(240) == 0, world.log
        delta = world.live()
        assert (delta.version, delta.trunk) == ("3", Trunk("2", whole.digest)), world.log


@pytest.mark.parametrize("method", [(), DELTA], ids=["full", "delta"])
@pytest.mark.long
def test_trainer_killed_in_training_resumes_the_same_round_and_publishes_once(
    world: World, method: tuple[str, ...]
) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    slow = (*method, "--reward.epochs", "15", "--reward.checkpoint-every-steps", "5", "--reward.patience", "1000")
    checkpoints = world.directory / "work" / "rounds" / "reward-1" / "checkpoints"
    killed = world.trainer(*slow)
    world.until(lambda: checkpoints.exists() and any(p.name.isdecimal() for p in checkpoints.iterdir()))
    killed.kill()
    killed.wait()
    before = world.state["round"]
    put(world.redis, *(asked(i) for i in range(300, 400)))

    assert world.trainer("--once", *slow).wait(240) == 0, world.log
    assert "continuing from a checkpoint" in world.log
    assert world.store.versions("reward") == [1, 2]
    manifest = world.store.manifest("reward", 2)
    assert manifest.data is not None
    assert (manifest.data.last_stream_id, manifest.seed) == (before["until_stream_id"], before["seed"])
    assert manifest.data.signals == 300


@pytest.mark.long
def test_absent_server_is_asked_again_without_training_or_publishing_again(world: World) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    world.server.kill()
    trainer = world.trainer("--once", "--promote-timeout-s", "2")
    world.until(lambda: "not reachable" in world.log)
    assert world.state["round"]["phase"] == "published"
    world.server.start()
    assert trainer.wait(120) == 0, world.log
    assert world.client.get_version("reward").version == "2"
    assert world.store.versions("reward") == [1, 2]


@pytest.mark.long
def test_sigterm_in_training_writes_a_checkpoint_and_exits_clean(world: World) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    trainer = world.trainer("--reward.epochs", "2000", "--reward.checkpoint-every-steps", "0")
    world.until(lambda: "msg=training" in world.log or "step=" in world.log)
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(20) == 0, world.log
    checkpoints = world.directory / "work" / "rounds" / "reward-1" / "checkpoints"
    assert [p.name.isdecimal() for p in checkpoints.iterdir()] == [True]


@pytest.mark.learning
@pytest.mark.long
def test_worse_candidate_is_refused_kept_and_not_served(world: World) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    assert world.trainer("--once").wait(120) == 0, world.log
    # Nothing is left of what was learned. A far higher rate makes the gradients infinite on some processors.
    put(world.redis, *(asked(i) for i in range(300, 600)))
    ruined = ("--reward.learning-rate", "1", "--reward.head-learning-rate", "10", "--reward.warmup-share", "0")
    ruined += ("--reward.linear-start", "0", "--reward.fresh-growth", "0", "--reward.gate-margin", "0")
    assert world.trainer("--once", "--reward.gate-tolerance", "0", *ruined).wait(120) == 0, world.log
    assert "rounds_refused=1" in last_line(world.log)
    assert world.store.versions("reward") == [1, 2]
    assert world.client.get_version("reward").version == "2"
    kept = json.loads((world.directory / "work" / "refused" / "reward-2" / "reasons.json").read_text())
    assert kept["reasons"]
    assert world.state["round"] is None


@pytest.mark.long
def test_once_tells_by_its_exit_status_that_a_round_was_skipped(world: World) -> None:
    put(world.redis, *(asked(i) for i in range(300)))
    shutil.rmtree(world.directory / "models" / "reward" / "1" / "torch")  # the server has loaded its graph
    assert world.trainer("--once").wait(120) == 3, world.log
    assert "rounds_skipped=1" in last_line(world.log)
    assert world.store.versions("reward") == [1]


def last_line(log: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", log.rstrip().rsplit("\n", 1)[-1])
