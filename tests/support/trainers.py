"""Trainer processes for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from support.processes import kill_group, start_group


class Archiver:
    """A trainer that archives and trains nothing."""

    def __init__(self, directory: Path, redis_url: str, name: str = "trainer", *args: str) -> None:
        self.log_path = directory / f"{name}.log"
        self.argv = [sys.executable, "-m", "rewardloop_trainer", "--redis-url", redis_url]
        self.argv += ["--archive", str(directory / "ledger"), "--work-dir", str(directory / "work")]
        self.argv += ["--store", str(directory / "models"), "--metrics-port", "0", "--lock-ttl-s", "1"]
        self.argv += ["--no-reward-rounds", "--no-policy-rounds", "--flush-rows", "50", "--flush-age-s", "0.05", *args]
        self.process: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._logged = 0  # bytes before the last start

    @property
    def log(self) -> str:
        """What was logged since the last start."""
        return self.log_path.read_bytes()[self._logged :].decode()

    def start(self) -> subprocess.Popen[bytes]:
        self._logged = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.process = start_group(self.argv, self.log_path)
        self._started.append(self.process)
        return self.process

    def wait_for_log(self, text: str, patience_s: float = 240.0) -> None:
        assert self.process is not None
        deadline = time.monotonic() + patience_s
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """As ``kill -9`` does; no-op when it does not run."""
        if self.process is not None:
            kill_group(self.process)

    def kill_all(self) -> None:
        """Kill every process that was started and may still run, such as one that stands still beside its successor."""
        for process in self._started:
            kill_group(process)
