"""The policy worker as a real process, with a real redis-server."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import Worker

from rewardloop.formats import keys
from rewardloop.formats.store import ModelStore
from rewardloop.v1 import policy_pb2
from rewardloop_client import (
    DeadlineExceeded,
    Generation,
    InvalidRequest,
    NotFound,
    QueueFull,
    RewardloopError,
    Unavailable,
)


@contextmanager
def running(directory: Path, redis_url: str) -> Iterator[Worker]:
    publish_policy(ModelStore(directory / "models"), small_llama(1), byte_encoder())
    worker = Worker(directory, redis_url, "--max-new-tokens", "16", "--queue-rows", "64")
    try:
        worker.until_serving()
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def worker(tmp_path: Path, redis_url: str) -> Iterator[Worker]:
    with running(tmp_path, redis_url) as own:
        yield own


@pytest.fixture(scope="module")
def shared_worker(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Worker]:
    """For tests that leave its versions alone."""
    with running(tmp_path_factory.mktemp("worker"), redis_url) as shared:
        yield shared


def test_answers_are_logged_before_they_are_given(shared_worker: Worker, redis_url: str) -> None:
    with shared_worker.client() as client:
        answer = client.generate("How are you?", candidates=3, temperature=0.9, top_p=0.8, seed=7, max_new_tokens=5)
    stored = redis.Redis.from_url(redis_url).get(keys.GENERATION + answer.generation_id)
    assert isinstance(stored, bytes)
    generation = policy_pb2.Generation.FromString(stored)
    assert generation.prompt.text == "How are you?"
    assert [c.text for c in generation.candidates] == [c.text for c in answer.candidates]
    assert len(answer.candidates) == 3
    assert (generation.temperature, generation.top_p, generation.seed) == (0.9, 0.8, 7)
    assert list(generation.show_probabilities) == [1.0, 1.0, 1.0]
    assert generation.policy_version.version == answer.policy_version.version == "1"
    for candidate in answer.candidates:
        assert 1 <= candidate.token_count <= 5
        assert math.isfinite(candidate.log_probability)
        assert candidate.log_probability < 0


def test_a_seed_repeats_its_answers_whatever_else_is_asked_meanwhile(shared_worker: Worker) -> None:
    def ask(seed: int) -> Generation:
        with shared_worker.client() as client:
            return client.generate("Tell me something.", candidates=2, seed=seed)

    alone = {seed: ask(seed) for seed in range(4)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, list(range(4)) * 4))
    for seed, answer in zip(list(range(4)) * 4, together, strict=True):
        assert [c.text for c in answer.candidates] == [c.text for c in alone[seed].candidates]


def test_greedy_answers_agree_with_each_other(shared_worker: Worker) -> None:
    with shared_worker.client() as client:
        answer = client.generate("Hello", candidates=4, temperature=0.0)
    assert len({c.text for c in answer.candidates}) == 1
    assert all(c.log_probability == 0.0 for c in answer.candidates)


def test_bad_requests_name_their_fields_and_leave_the_worker_well(shared_worker: Worker) -> None:
    with shared_worker.client() as client:
        cases: list[tuple[dict[str, object], str]] = [
            ({"candidates": 65}, "candidates"),
            ({"candidates": -1}, "candidates"),
            ({"temperature": float("nan")}, "temperature"),
            ({"temperature": 5.1}, "temperature"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_p": float("nan")}, "top_p"),
            ({"max_new_tokens": 17}, "max_new_tokens"),
            ({"max_new_tokens": -3}, "max_new_tokens"),
            ({"best_of": 4}, "best_of"),
            ({"selection": "best"}, "selection"),
            ({"random_share": 0.0}, "random_share"),
        ]
        for arguments, field in cases:
            with pytest.raises(InvalidRequest) as caught:
                client.generate("Hello", **arguments)  # type: ignore[arg-type]
            assert [v.field for v in caught.value.violations] == [field]
            assert str(caught.value).count(field) == 1
        with pytest.raises(
            InvalidRequest, match="1 to 16, not 17; --max-new-tokens of the policy worker sets the bound"
        ):
            client.generate("Hello", max_new_tokens=17)
        with pytest.raises(InvalidRequest):
            client.generate("")
        assert client.generate("Hello").candidates
        # Far longer than the model's 128 positions.
        assert client.generate("word " * 2000 + "end").candidates


def test_an_answer_says_what_of_the_prompt_was_left_out(shared_worker: Worker) -> None:
    said = (("user", "word " * 4), ("assistant", "word " * 4), ("user", "a" * 40))
    talk = [{"role": role, "content": content} for role, content in said]
    with shared_worker.client() as client:
        assert client.generate("Hello").truncated is None
        dropped = client.generate(talk).truncated
        cut = client.generate("word " * 2000 + "end").truncated
    assert dropped is not None
    assert (dropped.dropped_turns, dropped.is_cut) == (2, False)
    assert cut is not None
    assert (cut.dropped_turns, cut.is_cut) == (0, True)


def test_promoting_switches_between_answers_and_fails_none(worker: Worker) -> None:
    for seed in (2, 3, 4):
        publish_policy(worker.store, small_llama(seed), byte_encoder(), parent="1")
    failures: list[RewardloopError] = []
    versions: list[str] = []
    stop = threading.Event()

    def ask_on() -> None:
        with worker.client() as client:
            while not stop.is_set():
                try:
                    versions.append(client.generate("Hello", candidates=2, max_new_tokens=8).policy_version.version)
                except RewardloopError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    with worker.client(timeout_s=30.0) as client:
        for version in ("2", "3", "4", "1", "4"):
            assert client.promote("policy", version).version.version == version
            assert client.generate("Hello").policy_version.version == version
        assert client.rollback("policy").version.version == "1"
        assert client.get_version("policy").version == "1"
        with pytest.raises(NotFound):
            client.promote("policy", "99")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(versions) == {"1", "2", "3", "4"}


def test_a_canary_answers_its_share_of_requests_beside_the_active_version(worker: Worker) -> None:
    publish_policy(worker.store, small_llama(2), byte_encoder(), parent="1")
    with worker.client(timeout_s=30.0) as client:

        def ask(candidates: int, seed: int) -> Generation:
            return client.generate("Hello", candidates=candidates, seed=seed, max_new_tokens=2)

        alone = ask(2, seed=0)
        info = client.set_canary("policy", "2", share=0.5)
        assert info is not None
        assert info.state == "canary"
        answers = {seed: ask(5, seed) for seed in range(30)}
        compared = {
            seed: [c.policy_version.version if c.policy_version else "1" for c in answer.candidates]
            for seed, answer in answers.items()
            if any(c.policy_version for c in answer.candidates)
        }
        assert 4 <= len(compared) <= 26  # 4 deviations about 15
        assert all(sorted(versions) == ["1", "1", "2", "2", "2"] for versions in compared.values())
        assert len({tuple(versions) for versions in compared.values()}) > 1  # a place says nothing about the version
        assert {answer.policy_version.version for answer in answers.values()} == {"1"}
        seed = min(compared)
        assert ask(5, seed).candidates == answers[seed].candidates
        for seed in range(5):
            assert ask(1, seed).policy_version.version == ("2" if seed in compared else "1")
        client.set_canary("policy", None)
        assert ask(2, seed=0).candidates == alone.candidates
        with pytest.raises(InvalidRequest):
            client.set_shadow("policy", "2", share=0.5)


def test_a_broken_version_is_refused_and_the_running_one_stays(shared_worker: Worker) -> None:
    bad = publish_policy(shared_worker.store, small_llama(9), byte_encoder())
    weights = Path(shared_worker.store.path("policy", bad.version)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    with shared_worker.client() as client:
        with pytest.raises(RewardloopError) as caught:
            client.promote("policy", bad.version)
        assert caught.value.reason == "CORRUPT_VERSION"
        assert client.generate("Hello").policy_version.version == "1"


def test_a_full_queue_pushes_back_and_a_short_deadline_is_kept(shared_worker: Worker) -> None:
    outcomes: list[type[BaseException] | None] = []

    def ask(_: int) -> None:
        with shared_worker.client() as client:
            try:
                client.generate("Hello", candidates=16)
                outcomes.append(None)
            except RewardloopError as error:
                outcomes.append(type(error))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))
    assert set(outcomes) <= {None, QueueFull}
    assert QueueFull in outcomes
    assert None in outcomes
    with shared_worker.client() as client:
        with pytest.raises(DeadlineExceeded):
            client.generate("Hello", candidates=16, timeout_s=0.001)
        assert client.generate("Hello").candidates


def test_without_redis_answers_are_refused_and_come_back_with_it(tmp_path: Path, redis_url: str) -> None:
    publish_policy(ModelStore(tmp_path / "models"), small_llama(1), byte_encoder())
    from rewardloop_local.redis_server import EmbeddedRedis

    own = EmbeddedRedis(tmp_path / "redis")
    own.start()
    worker = Worker(tmp_path, own.url)
    try:
        worker.until_serving()
        with worker.client() as client:
            assert client.generate("Hello").candidates
            own.stop()
            with pytest.raises(Unavailable) as caught:
                client.generate("Hello")
            assert caught.value.reason == "REDIS_UNAVAILABLE"
            own.start()
            assert client.generate("Hello").candidates
    finally:
        worker.stop()
        own.stop()


def test_the_worker_never_imports_onnxruntime() -> None:
    code = "import sys, rewardloop_policy.serving; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sigterm_lets_answers_in_flight_finish(shared_worker: Worker) -> None:
    """Last: it ends the shared worker."""
    with shared_worker.client() as client, ThreadPoolExecutor(4) as pool:
        client.generate("Hello")
        pending = [pool.submit(client.generate, "Hello", candidates=16) for _ in range(4)]
        time.sleep(0.05)
        shared_worker.process.send_signal(signal.SIGTERM)
        for answer in pending:
            failure = answer.exception()
            if failure is None:
                assert len(answer.result().candidates) == 16
            else:  # not yet admitted when the signal came
                assert isinstance(failure, Unavailable)
    assert shared_worker.process.wait(30) == 0
