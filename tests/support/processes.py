"""Real processes for tests: started, awaited, and ended whatever the test does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from rewardloop_client import TLS, RewardloopClient, RewardloopError
from rewardloop_local.ports import free_port

REWARD_SERVICE = "rewardloop.v1.RewardService"


def start_group(argv: Sequence[str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a process as the leader of a group of its own, and append what it says to the log."""
    with log_path.open("ab") as log:
        return subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of `start_group` and all that it started. Wrappers such as faketime have a child."""
    with suppress(ProcessLookupError):  # they have all ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class ServeProcess:
    """``rewardloop serve`` on a port that stays the same over restarts.

    Versions are not tried in a child process, which takes seconds, unless ``args`` ask for it.
    """

    store: Path
    redis_url: str
    log_path: Path
    args: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        argv = [sys.executable, "-m", "rewardloop_server.app", "--store", str(self.store)]
        argv += ["--redis-url", self.redis_url, "--listen", self.address, "--metrics-port", str(self.metrics_port)]
        if "--load-probe" not in self.args:
            argv += ["--load-probe", "never"]
        return [*argv, "--intra-op-threads", "1", "--no-spin", *self.args]

    def start(self) -> None:
        self.process = start_group(self.argv(), self.log_path)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        assert self.process is not None
        kill_group(self.process)

    def terminate(self, patience_s: float = 30.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)

    def wait_until_serving(
        self, service: str = REWARD_SERVICE, patience_s: float = 60.0, tls: TLS | bool = False
    ) -> None:
        assert self.process is not None
        deadline = time.monotonic() + patience_s
        with RewardloopClient(self.address, timeout_s=2.0, max_attempts=1, tls=tls) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log_path.read_text()}")
                try:
                    if client.health(service):
                        return
                except RewardloopError:
                    pass  # not listening yet: the deadline decides
                time.sleep(0.05)
        raise AssertionError(f"not serving after {patience_s} s:\n{self.log_path.read_text()}")

    def samples(self) -> list[Sample]:
        """Every sample of its page of metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            families = text_string_to_metric_families(page.read().decode())
        return [sample for family in families for sample in family.samples]

    def figure(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        found = (s for s in self.samples() if s.name == name and labels.items() <= s.labels.items())
        return sum(sample.value for sample in found)


@contextmanager
def serving(store: Path, redis_url: str, log_path: Path, *args: str) -> Iterator[ServeProcess]:
    """A running, warm serving process; ended with the block."""
    process = ServeProcess(store, redis_url, log_path, args)
    process.start()
    try:
        process.wait_until_serving()
        yield process
    finally:
        if process.process is not None and process.process.poll() is None:
            process.kill()
