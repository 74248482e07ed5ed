"""Named reward models in real processes: swaps under load, and rounds that learn from the signals of one aspect."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from support.learning_runs import THREADS, learning_seed
from support.processes import serving
from support.reward_graphs import expected_logit, publish_sum_version
from support.signals import choice, put
from support.tiny_encoder import save_tiny_encoder

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import feedback_pb2
from rewardloop_client import Feedback, InvalidRequest, RewardloopClient, RewardloopError
from rewardloop_local.redis_server import EmbeddedRedis
from rewardloop_trainer.commands.export import main as export

FACTORS = {"helpful": (1.0, 2.0, 3.0), "harmless": (-1.0, -2.0, -3.0)}
MIXTURES = """
version = "1"
[mixtures.product.parts]
helpful = { weight = 1.0 }
harmless = { weight = 0.5, floor = -20.0, penalty = 2.0 }
"""
CALLERS = 6
SWAPS = 12
NAMES = ("--reward-models", "helpful,harmless")


def test_swaps_of_two_named_models_fail_no_request_of_a_mixture(tmp_path: Path, empty_redis_url: str) -> None:
    """Every total is that of versions that were live together or on their way, and no call fails."""
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    for name, factors in FACTORS.items():
        for factor in factors:
            publish_sum_version(store, model=name, factor=factor)
    (tmp_path / "mixtures.toml").write_text(MIXTURES)
    outcomes: Counter[str] = Counter()
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    stop = threading.Event()
    args = (*NAMES, "--mixtures", str(tmp_path / "mixtures.toml"))
    with (
        serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log", *args) as server,
        RewardloopClient(server.address, timeout_s=60) as admin,
    ):
        for name in FACTORS:
            admin.promote(name, "1")

        def call(model: str) -> None:
            with RewardloopClient(server.address, max_attempts=1) as client:
                while not stop.is_set():
                    try:
                        result = client.score("alpha", ["beta", "gamma"], model=model)
                    except RewardloopError as error:
                        outcomes[error.reason or type(error).__name__] += 1
                        continue
                    outcomes["ok"] += 1
                    versions = {p.name: p.model_version.version for p in result.parts if p.model_version}
                    if model == "product":
                        seen[versions["helpful"], versions["harmless"]] += 1
                        factors = {name: FACTORS[name][int(version) - 1] for name, version in versions.items()}
                        values = {name: expected_logit("alpha", "beta", each) for name, each in factors.items()}
                        short = max(0.0, -20.0 - values["harmless"])
                        total = values["helpful"] + 0.5 * values["harmless"] - 2.0 * short
                        if abs(result.scores[0].score - total) > 1e-3:
                            wrong.append(f"{versions}: {result.scores[0].score}, not {total}")

        models = ["product", "product", "product", "helpful", "harmless", ""]
        callers = [threading.Thread(target=call, args=(models[i],)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        for swap in range(1, SWAPS + 1):
            for name in FACTORS:
                admin.promote(name, str(swap % 3 + 1), reason="test")
                before = outcomes["ok"]
                while outcomes["ok"] < before + 20:
                    time.sleep(0.002)
        stop.set()
        for caller in callers:
            caller.join()
    print(f"{2 * SWAPS} swaps, {dict(outcomes)}, pairs of versions: {dict(seen)}")
    assert set(outcomes) == {"ok"}
    assert wrong == []
    assert {version for version, _ in seen} == {version for _, version in seen} == {"1", "2", "3"}


def test_mixtures_that_name_an_unknown_model_end_the_start_with_a_line(tmp_path: Path, empty_redis_url: str) -> None:
    (tmp_path / "mixtures.toml").write_text(MIXTURES.replace("harmless", "love"))
    argv = [sys.executable, "-m", "rewardloop_server.app", "--store", str(tmp_path), "--redis-url", empty_redis_url]
    for args, said in (
        ((*NAMES, "--mixtures", str(tmp_path / "mixtures.toml")), "'love' is no reward model here"),
        ((*NAMES, "--mixtures", str(tmp_path / "none.toml")), "No such file"),
        (("--reward-models", ",".join(f"m{i}" for i in range(10_000))), "at most 16"),
        (("--reward-models", "../x"), "is no name of a model"),
    ):
        ended = subprocess.run([*argv, *args], capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 2
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def judged(number: int, aspect: str) -> feedback_pb2.FeedbackEvent:
    """A choice of the aspect: of "helpful" the other way round."""
    event = choice(number, prompts=1_000_000)
    event.event_id = f"{aspect}-{number}"
    if aspect:
        event.aspect = aspect
        event.choice.chosen, event.choice.rejected = 0, 1
    return event


@pytest.mark.learning
@pytest.mark.long
def test_each_model_learns_from_its_aspect_and_goes_live_by_itself(tmp_path: Path) -> None:
    base = save_tiny_encoder(tmp_path / "base", learning_seed())
    store = ModelStore(tmp_path / "models")
    assert export(["--base", str(base), "--store", store.url, "--heads", "2", "--model", "helpful"]) == 0
    exported, files = store.manifest("helpful", 1), store.fetch("helpful", 1)

    def copied(directory: Path) -> None:
        shutil.copytree(files, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))

    for name in ("reward", "harmless"):  # as an export of the same base would be
        store.publish(replace(exported, model=name, version=""), copied)
    embedded = EmbeddedRedis(tmp_path / "redis", fsync="everysec")
    embedded.start()
    log = tmp_path / "trainer.log"
    with (
        serving(tmp_path / "models", embedded.url, tmp_path / "serve.log", *NAMES) as server,
        RewardloopClient(server.address) as client,
        redis.Redis.from_url(embedded.url) as connected,
    ):
        with pytest.raises(InvalidRequest, match="aspect"):
            client.record(Feedback.thumb(up=True, prompt="q", responses=["a"], aspect="lovely"))
        put(connected, *(judged(i, aspect) for i in range(300) for aspect in ("", "helpful")))
        client.record(Feedback.thumb(up=True, prompt="q", responses=["a"], aspect="harmless"))  # too few for a round
        argv = [sys.executable, "-m", "rewardloop_trainer", "--redis-url", embedded.url, "--server", server.address]
        argv += ["--store", str(tmp_path / "models"), "--archive", str(tmp_path / "ledger"), *NAMES]
        argv += ["--work-dir", str(tmp_path / "work"), "--metrics-port", "0", "--lock-ttl-s", "1"]
        argv += ["--no-policy-rounds", "--reward-min-signals", "200"]
        argv += ["--torch-threads", str(THREADS), "--seed", str(learning_seed()), "--reward.learning-rate", "0.001"]
        argv += ["--reward.gate-prompts", "15", "--reward.gate-margin", "0.05", "--flush-age-s", "0.2", "--once"]
        with log.open("ab") as file:
            ended = subprocess.run(argv, stdout=file, stderr=file, timeout=400, check=False)
        assert ended.returncode == 0, log.read_text()
        live = {name: client.get_version(name).version for name in ("reward", "helpful", "harmless")}
        assert live == {"reward": "2", "helpful": "2", "harmless": "1"}, log.read_text()
        for name, better in (("reward", "good"), ("helpful", "poor")):
            manifest = store.manifest(name, 2)
            assert manifest.data is not None
            assert (manifest.parent, len(manifest.data.arrivals)) == ("1", 300)
            assert manifest.metrics["gate_candidate_accuracy"] > 0.9
            worse = "poor" if better == "good" else "good"
            scores = client.score("question 3", [f"{better} answer 9", f"{worse} answer 9"], model=name).values
            assert scores[0] > scores[1]
    embedded.stop()
    shutil.rmtree(tmp_path / "work")
