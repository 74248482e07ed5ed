"""Two serving processes under load, each restarted in turn: the client's calls all succeed."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version
from typer.testing import CliRunner

from rewardloop.formats.store import ModelStore
from rewardloop_cli.main import app
from rewardloop_client import FinishedCall, RewardloopClient

pytestmark = pytest.mark.long


def test_a_rolling_restart_fails_no_call(tmp_path: Path, redis_url: str) -> None:
    publish_sum_version(ModelStore(tmp_path / "models"))
    seen: list[FinishedCall] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    with ExitStack() as stack:
        replicas: list[ServeProcess] = [
            stack.enter_context(serving(tmp_path / "models", redis_url, tmp_path / f"serve{n}.log")) for n in range(2)
        ]
        addresses = [replica.address for replica in replicas]
        client = stack.enter_context(RewardloopClient(addresses, timeout_s=30, observer=seen.append))

        def ask() -> None:
            while not stop.is_set():
                try:
                    assert len(client.score("alpha", ["beta", "gamma"]).scores) == 2
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            for replica in replicas:
                before = len(seen)
                assert replica.terminate() == 0
                assert _health(replica) == 1
                replica.start()
                replica.wait_until_serving()
                assert _health(replica) == 0
                give_up = time.monotonic() + 30
                while len(seen) < before + 50:
                    assert time.monotonic() < give_up
                    time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert {call.code for call in seen} == {"OK"}


def _health(replica: ServeProcess) -> int:
    arguments = ["health", "rewardloop.v1.RewardService", "--server", replica.address]
    asked = CliRunner().invoke(app, arguments)
    if asked.exit_code == 0:
        page = f"http://127.0.0.1:{replica.metrics_port}/metrics"
        assert CliRunner().invoke(app, ["health", "--metrics", page]).exit_code == 0
    return asked.exit_code
