"""h2load, an HTTP/2 load generator that knows nothing of gRPC: raw Score bodies over h2c."""

from __future__ import annotations

import re
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version
from support.tools import tool

from rewardloop.formats.store import ModelStore
from rewardloop.v1 import common_pb2, reward_pb2
from rewardloop_client import RewardloopClient

pytestmark = pytest.mark.long

REQUESTS = 2000


@pytest.fixture
def server(tmp_path: Path, redis_url: str) -> Iterator[ServeProcess]:
    publish_sum_version(ModelStore(tmp_path / "models"))
    with serving(tmp_path / "models", redis_url, tmp_path / "serve.log") as serve:
        with RewardloopClient(serve.address) as client:
            client.promote("reward", "1")
        yield serve


def _scored(server: ServeProcess) -> dict[str, float]:
    """Score calls that ended, by code, as the metrics page counts them."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30).read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    calls = [s for s in samples if s.name == "rewardloop_requests_total" and s.labels["method"].endswith("Score")]
    return {sample.labels["code"]: sample.value for sample in calls}


def test_thousands_of_pipelined_calls_all_succeed_and_are_counted(server: ServeProcess, tmp_path: Path) -> None:
    h2load = tool("h2load", "nghttp2-client")
    request = reward_pb2.ScoreRequest(prompt=common_pb2.Prompt(text="alpha"), responses=["beta", "gamma"])
    message = request.SerializeToString()
    body = tmp_path / "body"
    body.write_bytes(struct.pack(">?I", False, len(message)) + message)  # gRPC's frame: compressed?, length
    before = _scored(server)
    command = [h2load, "-n", str(REQUESTS), "-c", "4", "-m", "32", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += [f"http://{server.address}/rewardloop.v1.RewardService/Score"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (succeeded|failed|errored|timeout|2xx|5xx)", done.stdout)}
    assert counts == {"succeeded": REQUESTS, "2xx": REQUESTS, "failed": 0, "errored": 0, "timeout": 0, "5xx": 0}
    # HTTP's status is 200 whatever the call's own, which stands in the trailers: the server's count tells.
    after = _scored(server)
    assert after["OK"] - before.get("OK", 0.0) == REQUESTS
    assert {code: n for code, n in after.items() if code != "OK" and n} == {}
