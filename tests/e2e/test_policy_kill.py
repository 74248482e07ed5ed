"""The policy worker is killed under load: answers are refused by name, scoring goes on, and it comes back as it was."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import Worker
from support.processes import serving
from support.redis_processes import until
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient, RewardloopError

pytestmark = pytest.mark.long


def test_killed_policy_worker_is_missed_by_nobody_who_scores(tmp_path: Path, empty_redis_url: str) -> None:
    store = ModelStore(tmp_path / "models")
    publish_sum_version(store)
    for seed in (0, 1):
        publish_policy(store, small_llama(seed), byte_encoder())
    worker = Worker(tmp_path, empty_redis_url, "--max-new-tokens", "8")
    scores: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    stop = threading.Event()
    arguments = ["--policy-address", worker.address]
    with serving(tmp_path / "models", empty_redis_url, tmp_path / "serve.log", *arguments) as server:
        worker.until_serving()
        with worker.client() as client:
            client.promote("policy", "1")  # not the newest: a worker that starts again must not take that one

        def score() -> None:
            with RewardloopClient(server.address, max_attempts=1, timeout_s=30) as client:
                while not stop.is_set():
                    try:
                        client.score("alpha", ["beta"])
                        scores["answered"] += 1
                    except RewardloopError as error:
                        scores[error.reason or error.code.name] += 1
                    time.sleep(0.01)

        def ask() -> None:
            with RewardloopClient(server.address, max_attempts=1, timeout_s=30) as client:
                while not stop.is_set():
                    try:
                        answers[client.generate("hello").policy_version.version] += 1
                    except RewardloopError as error:
                        answers[error.reason or error.code.name] += 1
                        time.sleep(0.05)

        threads = [threading.Thread(target=work) for work in (score, ask, ask)]
        for thread in threads:
            thread.start()
        again = None
        try:
            until(lambda: answers["1"] >= 5)
            worker.process.kill()
            worker.process.wait()
            until(lambda: answers["POLICY_UNAVAILABLE"] >= 2)
            before = answers["1"]
            again = Worker(tmp_path, empty_redis_url, "--max-new-tokens", "8", "--listen", worker.address)
            until(lambda: answers["1"] >= before + 5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            if again is not None:
                assert again.stop() == 0
    assert set(scores) == {"answered"}
    assert set(answers) - {"NO_MODEL"} == {"1", "POLICY_UNAVAILABLE"}  # NO_MODEL: it is back and still loads
