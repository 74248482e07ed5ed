"""A service as users run it (embedded Redis, ``rewardloop export``, ``rewardloop serve``), and loads put on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

from rewardloop.formats.store import Manifest, ModelStore
from rewardloop_client import RewardloopClient, RewardloopError
from rewardloop_local.ports import free_port
from rewardloop_local.redis_server import EmbeddedRedis

Json = dict[str, Any]
_CLI = (sys.executable, "-m", "rewardloop_cli.main")
_PACKAGES = ("protos", "server", "client", "trainer", "deploy")


class NotRun(Exception):
    """A part of the benchmark cannot be run here; the message says why."""


def environment() -> dict[str, str]:
    """Return the environment of what is measured: this tree, or the checkout that ``BENCH_TREE`` names.

    So one load can be put on two versions of the service in turns.
    """
    tree = os.environ.get("BENCH_TREE")
    if tree is None:
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(tree) / each) for each in _PACKAGES)}


def export(base: Path, store: Path, *, max_length: int, precision: str = "float32", heads: int = 1) -> Manifest:
    """Publish the base as a version; done once a store. Raises NotRun with what the command said."""
    if not ModelStore(store).versions("reward"):
        command = [*_CLI, "export", "--base", str(base), "--store", str(store), "--max-length", str(max_length)]
        command += ["--heads", str(heads)]
        command += [] if precision == "float32" else ["--precision", precision]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        if done.returncode != 0:
            raise NotRun(f"export at {precision}: {done.stderr.strip().splitlines()[-1:]}")
    return ModelStore(store).manifest("reward", max(ModelStore(store).versions("reward")))


@dataclass(frozen=True)
class Service:
    """A running, warm service."""

    address: str
    metrics_url: str
    pid: int
    store: Path
    redis_url: str

    @property
    def version_directory(self) -> Path:
        return self.store / "reward" / str(max(ModelStore(self.store).versions("reward")))

    def samples(self) -> list[Any]:
        """Every sample of the metrics page."""
        page = urllib.request.urlopen(self.metrics_url, timeout=10).read().decode()
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


@contextmanager
def serving(
    store: Path, *args: str, fsync: Literal["always", "everysec"] = "always", token: str | None = None
) -> Iterator[Service]:
    """Ends what it started with the block. ``token`` is shown to a server with callers."""
    with tempfile.TemporaryDirectory(prefix="rewardloop-bench-") as name:
        directory = Path(name)
        redis = EmbeddedRedis(directory / "redis", fsync=fsync)
        redis.start()
        port, metrics_port = free_port(), free_port()
        address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "rewardloop_server.app", "--store", str(store), "--redis-url", redis.url]
        command += ["--listen", address, "--metrics-port", str(metrics_port), "--log-level", "warning", *args]
        log_path = directory / "serve.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
        try:
            with RewardloopClient(address, timeout_s=120, token=token) as client:
                _wait(client, process, log_path)
                client.promote("reward", str(max(ModelStore(store).versions("reward"))))
                while not client.health("rewardloop.v1.RewardService"):
                    time.sleep(0.1)
            yield Service(address, f"http://127.0.0.1:{metrics_port}/metrics", process.pid, store, redis.url)
        finally:
            end(process)
            redis.stop()


def _wait(client: RewardloopClient, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotRun(f"the service did not start:\n{log_path.read_text()[-2000:]}")
        try:
            if client.health("rewardloop.v1.ModelService", timeout_s=2.0):
                return
        except RewardloopError:
            pass  # not listening yet: the deadline decides
        time.sleep(0.1)


def end(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL after 20 seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_load(service: Service, target: Path, *options: str) -> subprocess.Popen[str]:
    """``rewardloop bench`` in a process of its own; `finish_load` waits for it."""
    command = [*_CLI, "bench", "--server", service.address, "--json", str(target), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish_load(process: subprocess.Popen[str], target: Path) -> list[Json]:
    """The runs that it measured. Raises NotRun with its output when it measured nothing."""
    output, _ = process.communicate()
    if not target.exists():
        raise NotRun(f"rewardloop bench ended with {process.returncode}: {output.strip()[-1000:]}")
    runs: list[Json] = json.loads(target.read_text())["runs"]
    return runs


def load(service: Service, *options: str) -> Json:
    """The last run of one ``rewardloop bench`` with these options."""
    with tempfile.TemporaryDirectory(prefix="rewardloop-load-") as directory:
        target = Path(directory) / "runs.json"
        return finish_load(start_load(service, target, *options), target)[-1]


def print_rows(rows: Sequence[Sequence[object]]) -> None:
    """A table: the first row names the columns."""
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def print_machine() -> None:
    import onnxruntime

    from rewardloop_cli.bench.report import machine

    here = machine()
    print(f"{here['cores']} cores, {here['cpu']}, Python {here['python']}, ONNX Runtime {onnxruntime.__version__}")
