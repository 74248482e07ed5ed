"""The policy worker as a real process, for tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient, RewardloopError
from support.processes import free_port

SERVICE = "rewardloop.v1.PolicyService"


class Worker:
    def __init__(self, directory: Path, redis_url: str, *args: str) -> None:
        self.store = ModelStore(directory / "models")
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics_port = free_port()
        self._log_path = directory / "worker.log"
        argv = [sys.executable, "-m", "rewardloop_policy.app", "--store", str(directory / "models")]
        argv += ["--redis-url", redis_url, "--listen", self.address, "--metrics-port", str(self.metrics_port), *args]
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    def client(self, **settings: float) -> RewardloopClient:
        return RewardloopClient(self.address, **{"timeout_s": 20.0, "max_attempts": 1, **settings})  # type: ignore[arg-type]

    def until_serving(self, patience_s: float = 60.0) -> None:
        deadline = time.monotonic() + patience_s
        with self.client(timeout_s=2.0) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if client.health(SERVICE):
                        return
                except RewardloopError:
                    pass  # not listening yet: the deadline decides
                time.sleep(0.05)
        raise AssertionError(self._log_path.read_text())

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
