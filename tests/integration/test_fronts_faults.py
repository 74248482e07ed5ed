"""Processes of a service with fronts are killed, drained and swapped under load: what fails, and what does not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fronts import FrontedService, serving_by_fronts, until
from support.reward_graphs import WORDS, expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import Connection, EngineStuck, NoModel, RewardloopClient, RewardloopError

pytestmark = pytest.mark.long

CALLERS = 6
# A run for each call, and a queue that holds them on a slow machine too.
_MANY_RUNS = ("--token-budget", "8", "--queue-ms-production", "60000")


@dataclass
class Load:
    """What callers saw: every right answer's version, and every failure."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[RewardloopError] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return sum(self.versions.values())


@contextmanager
def load_on(service: FrontedService, *, attempts: int) -> Iterator[Load]:
    """Callers with a connection each, who score all the time. Version n multiplies sums by n."""
    load, stop = Load(), threading.Event()

    def call(number: int) -> None:
        rng = random.Random(number)
        with RewardloopClient(service.address, timeout_s=15, max_attempts=attempts, connection=own(number)) as client:
            while not stop.is_set():
                prompt, responses = rng.choice(WORDS), [" ".join(rng.choices(WORDS, k=k)) for k in (1, 3)]
                try:
                    reply = client.score(prompt, responses)
                except RewardloopError as error:
                    load.failures.append(error)
                    time.sleep(0.01)
                    continue
                factor = float(reply.model_version.version)
                right = [expected_logit(prompt, response, factor) for response in responses]
                if [score.logit for score in reply.scores] != pytest.approx(right):
                    load.wrong.append(f"{prompt} {responses} {reply}")
                load.versions[reply.model_version.version] += 1

    callers = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield load
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)
    assert not any(caller.is_alive() for caller in callers), "a call hangs"
    assert load.wrong == []


def own(number: int) -> Connection:
    """A connection that no other client of this process shares, so that several fronts are called."""
    return Connection(keepalive_s=300.0 + number)


def grown(load: Load, by: int = 50) -> None:
    """Wait until so many more calls were answered."""
    before = load.answers
    until(lambda: load.answers >= before + by)


@pytest.fixture(scope="module")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontedService]:
    directory = tmp_path_factory.mktemp("service")
    store = ModelStore(directory / "models")
    for version in range(1, 4):
        publish_sum_version(store, factor=float(version))
    with serving_by_fronts(directory / "models", redis_url, directory / "log", "--cache-mib", "0") as service:
        yield service


def test_swaps_under_load_fail_no_request_and_mix_no_versions(service: FrontedService) -> None:
    with load_on(service, attempts=1) as load, RewardloopClient(service.address) as client:
        for version in ("1", "2", "3", "1"):
            client.promote("reward", version)
            grown(load)
    assert load.failures == []
    assert set(load.versions) == {"1", "2", "3"}


def test_killed_front_breaks_its_connections_alone_and_is_started_again(service: FrontedService) -> None:
    before = service.pid("front-0")
    with load_on(service, attempts=4) as load:
        grown(load)
        os.kill(before, 9)
        grown(load)
        until(lambda: service.pid("front-0") != before)
        until(lambda: service.figure("rewardloop_requests_in_flight", process="front-0") >= 0 and is_serving(service))
        grown(load)
    assert load.failures == [], "calls that broke were sent again, to the other front"
    until(lambda: service.figure("rewardloop_queue_tokens", process="engine") == 0)
    assert service.process is not None
    assert service.process.poll() is None


def test_killed_engine_fails_calls_with_a_code_to_retry_and_comes_back(service: FrontedService) -> None:
    before = service.pid("engine")
    with load_on(service, attempts=1) as load, RewardloopClient(service.address, max_attempts=1) as client:
        grown(load)
        os.kill(before, 9)
        until(lambda: not client.health("rewardloop.v1.RewardService"), 10)
        until(lambda: client.health("rewardloop.v1.RewardService"), 60)
        grown(load)
    assert load.failures
    assert {type(error) for error in load.failures} == {NoModel}
    assert all(error.retry_after_s for error in load.failures)
    assert service.pid("engine") != before


def test_an_engine_that_hangs_is_seen_by_health_and_by_callers(service: FrontedService) -> None:
    with RewardloopClient(service.address, max_attempts=1, timeout_s=10) as client:
        os.kill(service.pid("engine"), signal.SIGSTOP)
        try:
            until(lambda: not client.health("rewardloop.v1.RewardService"), 10)
            with pytest.raises(EngineStuck):
                client.score("alpha", ["beta"])
        finally:
            os.kill(service.pid("engine"), signal.SIGCONT)
        until(lambda: client.health("rewardloop.v1.RewardService"), 10)
        assert client.score("alpha", ["beta"]).scores


def test_a_front_that_hangs_is_killed_and_started_again(service: FrontedService) -> None:
    before = service.pid("front-1")
    os.kill(before, signal.SIGSTOP)
    until(lambda: service.pid("front-1") != before, 90)
    assert not Path(f"/proc/{before}").exists()
    with load_on(service, attempts=1) as load:
        grown(load)
    assert load.failures == []


@pytest.mark.parametrize("role", ["shadow", "canary"])
def test_a_version_that_is_gone_when_the_engine_comes_back_loses_its_role_alone(
    redis_url: str, tmp_path: Path, role: str
) -> None:
    for factor in (1.0, 2.0, 3.0):
        publish_sum_version(ModelStore(tmp_path / "models"), factor=factor)
    poll = ("--pointer-poll-s", "0.3", "--cache-mib", "0")
    with (
        serving_by_fronts(tmp_path / "models", redis_url, tmp_path / "log", *poll) as service,
        RewardloopClient(service.address, max_attempts=1, timeout_s=10) as client,
    ):
        client.promote("reward", "1")
        (client.set_shadow if role == "shadow" else client.set_canary)("reward", "2", share=0.5)
        until(lambda: service.figure("rewardloop_resident_versions", role=role) == service.fronts)
        shutil.rmtree(tmp_path / "models" / "reward" / "2")
        service.kill_one("engine")
        until(lambda: not client.health("rewardloop.v1.RewardService"), 10)
        until(lambda: client.health("rewardloop.v1.RewardService"), 30)
        until(lambda: service.figure("rewardloop_resident_versions", role=role) == 0)
        for word in WORDS:
            assert client.score(word, ["beta"]).model_version.version == "1"


def test_drain_fails_no_call_and_ends_every_process(redis_url: str, tmp_path: Path) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"), cost=6000)  # a hundred milliseconds a run or more
    with serving_by_fronts(tmp_path / "models", redis_url, tmp_path / "log", *_MANY_RUNS) as service:
        pids = [service.pid(name) for name in ("engine", "front-0", "front-1")]
        failures: list[Exception] = []
        answers: list[str] = []

        def call(number: int) -> None:
            with RewardloopClient(service.address, timeout_s=90, max_attempts=1, connection=own(number)) as client:
                try:
                    answers.append(client.score("alpha", ["beta"]).model_version.version)
                except Exception as error:
                    failures.append(error)

        callers = [threading.Thread(target=call, args=(i,)) for i in range(60)]
        for caller in callers:
            caller.start()
        until(lambda: failures or len(answers) + service.figure("rewardloop_requests_in_flight") >= 60)
        assert failures == []
        assert len(answers) < 50, "the others are in flight"
        began = time.monotonic()
        assert service.terminate() == 0
        assert time.monotonic() - began < 20
        for caller in callers:
            caller.join(30)
        assert failures == []
        assert len(answers) == 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_nothing_outlives_a_killed_supervisor(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tempfile.TemporaryDirectory()  # with a short name, as sockets need
    monkeypatch.setenv("TMPDIR", own.name)
    publish_sum_version(ModelStore(tmp_path / "models"))
    with serving_by_fronts(tmp_path / "models", redis_url, tmp_path / "log", "--drain-grace-s", "1") as service:
        pids = [service.pid(name) for name in ("engine", "front-0", "front-1")]
        assert list(Path(own.name).glob("rewardloop-*/engine.socket"))
        assert service.process is not None
        os.kill(service.process.pid, 9)
        service.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)
        assert not list(Path(own.name).glob("rewardloop-*"))
    own.cleanup()


def is_serving(service: FrontedService) -> bool:
    with RewardloopClient(service.address, max_attempts=1, timeout_s=2) as client:
        return client.health("rewardloop.v1.RewardService")
