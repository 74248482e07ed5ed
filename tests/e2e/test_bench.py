"""``rewardloop bench`` against the real service: each RPC, both loops, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import ServeProcess, serving
from support.redis_processes import until
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient

QUICK = ["--seconds", "1", "--warm-up", "0.2", "--responses", "2", "--distinct", "20"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("bench")
    publish_sum_version(ModelStore(directory / "models"))
    with serving(
        directory / "models", redis_url, directory / "serve.log", "--queue-tokens-production", "1500"
    ) as serve:
        with RewardloopClient(serve.address) as client:
            client.promote("reward", "1")
        yield serve


def _bench(server: ServeProcess, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rewardloop_cli.main", "bench", "--server", server.address, *QUICK, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_until_answered(server: ServeProcess, before_s: float) -> None:
    """Wait until a measurement has had answers for a second. ``before_s``: what runs had taken before it began."""
    until(lambda: _run_s(server) > before_s)
    time.sleep(1.0)


def _run_s(server: ServeProcess) -> float:
    return server.figure("rewardloop_run_seconds_total")


def _runs(server: ServeProcess, target: Path, *options: str) -> list[dict[str, Any]]:
    bench = _bench(server, "--json", str(target), *options)
    output, _ = bench.communicate(timeout=60)
    assert target.exists(), output
    return json.loads(target.read_text())["runs"]


@pytest.mark.parametrize(
    ("rpc", "groups"), [(["--rpc", "score"], 1), (["--rpc", "batch", "--batch", "3"], 3), (["--rpc", "stream"], 1)]
)
def test_each_rpc_is_measured_with_its_stages(
    server: ServeProcess, tmp_path: Path, rpc: list[str], groups: int
) -> None:
    (run,) = _runs(server, tmp_path / "b.json", "--callers", "2", *rpc)
    assert run["failures"] == {}
    assert run["versions"] == {"1": run["answered"] * groups}
    assert run["responses_per_s"] == pytest.approx(run["requests_per_s"] * groups * 2)
    assert run["tokens_per_s"] / run["responses_per_s"] == pytest.approx(64, abs=1)  # 83 words, cut at 64 tokens
    assert sum(run["stage_shares"].values()) >= 1 - 1e-6
    assert run["stage_shares"]["run"] > 0
    latency = run["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert run["generator_cpu_share"] > 0


@pytest.mark.parametrize("rpc", ["score", "stream"])
def test_an_open_loop_offers_its_rate(server: ServeProcess, tmp_path: Path, rpc: str) -> None:
    (run,) = _runs(server, tmp_path / "b.json", "--rpc", rpc, "--rate", "40", "--seconds", "2", "--callers", "1")
    assert run["loop"] == "open"
    # Poisson with mean 80 and a fixed seed: far from the bounds.
    assert 40 < run["answered"] + sum(run["failures"].values()) < 130


def test_refusals_of_a_full_queue_are_counted_and_the_rest_is_answered(server: ServeProcess, tmp_path: Path) -> None:
    (run,) = _runs(server, tmp_path / "b.json", "--callers", "64", "--responses", "8")
    assert set(run["failures"]) == {"QUEUE_FULL"}
    assert run["answered"] > 0
    assert run["refused_ms"]["max"] > 0


def test_ctrl_c_prints_what_there_is(server: ServeProcess) -> None:
    before_s = _run_s(server)
    bench = _bench(server, "--seconds", "600", "--callers", "2")
    try:
        _wait_until_answered(server, before_s)
        bench.send_signal(signal.SIGINT)
        output, _ = bench.communicate(timeout=30)
    finally:
        bench.kill()
    assert bench.returncode == 0, output
    assert "2 callers" in output
    assert "reward versions: 1 x" in output


def test_a_server_that_dies_ends_the_measurement_with_failures(
    tmp_path: Path, redis_url: str, server: ServeProcess
) -> None:
    with serving(server.store, redis_url, tmp_path / "serve.log") as doomed:
        before_s = _run_s(doomed)
        bench = _bench(doomed, "--rpc", "stream", "--seconds", "4", "--callers", "2")
        _wait_until_answered(doomed, before_s)
        doomed.kill()
        output, _ = bench.communicate(timeout=60)
    assert bench.returncode == 1, output
    assert "failures: " in output
