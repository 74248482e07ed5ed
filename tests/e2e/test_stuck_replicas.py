"""Two scoring servers on one Redis and one store, one of which is held by a run that does not end."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.processes import ServeProcess
from support.reward_graphs import WORDS, expected_logit, publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import Connection, InternalError, NotLoadable, RewardloopClient, RewardloopError
from rewardloop_local.redis_server import EmbeddedRedis

pytestmark = pytest.mark.long

LOOPS, HANGS = "beta", "gamma"
ARGS = ("--load-probe", "always", "--allow-loops", "--run-grace-s", "4", "--drain-grace-s", "5", "--load-limit-s", "20")
HEALTH_S = 10.0
SERVICE = "rewardloop.v1.RewardService"


@contextmanager
def replicas(tmp_path: Path, count: int) -> Iterator[list[ServeProcess]]:
    store = ModelStore(tmp_path / "models")
    for factor in (1.0, 2.0):
        publish_sum_version(store, factor=factor, loops_on=LOOPS, hangs_on=HANGS)
    embedded = EmbeddedRedis(tmp_path / "redis")
    embedded.start()
    with ExitStack() as stack:
        stack.callback(embedded.stop)
        servers = [ServeProcess(tmp_path / "models", embedded.url, tmp_path / f"{i}.log", ARGS) for i in range(count)]
        for server in servers:
            server.start()
            stack.callback(server.kill)
        for server in servers:
            server.wait_until_serving()
        yield servers


def is_serving(server: ServeProcess) -> bool:
    try:
        with RewardloopClient(server.address, timeout_s=2, max_attempts=1) as client:
            return client.health(SERVICE)
    except RewardloopError:
        return False


def until(holds: Callable[[], bool], patience_s: float) -> float:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < patience_s
        time.sleep(0.05)
    return time.monotonic() - started


class Callers:
    """Two callers of all replicas, one call after another, with the client's own retries and no others."""

    def __init__(self, servers: list[ServeProcess]) -> None:
        self._addresses = [server.address for server in servers]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(2)]
        self.failures: list[str] = []
        self.answers = 0

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        connection = Connection(skip_unhealthy=SERVICE)
        with RewardloopClient(self._addresses, timeout_s=30, connection=connection) as client:
            while not self._stop.is_set():
                try:
                    group = client.score("alpha", ["delta", "epsilon"])
                except RewardloopError as error:
                    self.failures.append(f"{error.reason or error.code}: {error}")
                    continue
                if abs(group.scores[0].logit - expected_logit("alpha", "delta", 2.0)) > 1e-3:
                    self.failures.append("a wrong score")
                self.answers += 1
                time.sleep(0.005)


def send(server: ServeProcess, word: str, errors: list[RewardloopError]) -> threading.Thread:
    def ask() -> None:
        with RewardloopClient(server.address, timeout_s=60) as client:
            try:
                client.score("alpha", [word])
            except RewardloopError as error:
                errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_replica_that_is_stuck_for_good_ends_and_the_other_answers_everything(tmp_path: Path) -> None:
    errors: list[RewardloopError] = []
    with replicas(tmp_path, 2) as servers, Callers(servers) as callers:
        stuck, other = servers
        asking = send(stuck, HANGS, errors)
        health_s = until(lambda: not is_serving(stuck), HEALTH_S)
        assert stuck.process is not None
        status = stuck.process.wait(30)
        asking.join()
        before = callers.answers
        until(lambda: callers.answers > before + 100, 30)
        assert is_serving(other)
    print(f"NOT_SERVING after {health_s:.1f} s, {callers.answers} answers, {len(callers.failures)} failed calls")
    assert status == 1
    assert callers.failures == []
    assert [type(error) for error in errors] == [InternalError]
    assert "does not stop" in stuck.log_path.read_text()


def test_a_replica_whose_run_can_be_stopped_serves_on(tmp_path: Path) -> None:
    errors: list[RewardloopError] = []
    with replicas(tmp_path, 2) as servers, Callers(servers) as callers:
        stuck = servers[0]
        asking = send(stuck, LOOPS, errors)
        asking.join()
        until(lambda: is_serving(stuck), 30)
        before = callers.answers
        until(lambda: callers.answers > before + 100, 30)
        page = urllib.request.urlopen(f"http://127.0.0.1:{stuck.metrics_port}/metrics", timeout=30).read().decode()
        assert re.search(r'rewardloop_version_stuck_runs\{model="reward",version="2"\} [1-9]', page)
        assert stuck.terminate(20) == 0
    assert callers.failures == []
    assert [type(error) for error in errors] == [InternalError]


def test_a_version_that_hangs_when_it_is_tried_is_refused_while_the_old_one_serves(tmp_path: Path) -> None:
    with replicas(tmp_path, 1) as (server,), RewardloopClient(server.address, timeout_s=120) as client:
        hanging = publish_sum_version(ModelStore(tmp_path / "models"), hangs_on=WORDS[-1]).version
        started = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            promoting = pool.submit(client.promote, "reward", hanging)
            while not promoting.done():
                assert client.score("alpha", ["delta"]).model_version.version == "2"
                time.sleep(0.2)
        with pytest.raises(NotLoadable, match="does not end within"):
            promoting.result()
        print(f"refused after {time.monotonic() - started:.1f} s")
        assert is_serving(server)
        assert client.promote("reward", "1").version.version == "1"
        with ThreadPoolExecutor(1) as pool:
            promoting = pool.submit(client.promote, "reward", hanging)
            time.sleep(3)
            assert server.terminate(20) == 0
            with pytest.raises(RewardloopError):
                promoting.result()


def test_a_stuck_replica_takes_a_rollback_and_ends_with_sigterm(tmp_path: Path) -> None:
    errors: list[RewardloopError] = []
    with replicas(tmp_path, 1) as (server,):
        with RewardloopClient(server.address, timeout_s=60) as admin:
            admin.promote("reward", "1")
            admin.promote("reward", "2")
            asking = send(server, HANGS, errors)
            time.sleep(0.5)
            assert admin.rollback("reward").version.version == "1"
        started = time.monotonic()
        status = server.terminate(30)
        asking.join()
    print(f"ended with {status} after {time.monotonic() - started:.1f} s")
    assert time.monotonic() - started < 12
    assert errors
