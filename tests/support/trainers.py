"""Trainer processes for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


class Archiver:
    """A trainer that archives and trains nothing."""

    def __init__(self, directory: Path, redis_url: str, name: str = "trainer", *args: str) -> None:
        self.log_path = directory / f"{name}.log"
        self.argv = [sys.executable, "-m", "rewardloop_trainer", "--redis-url", redis_url]
        self.argv += ["--archive", str(directory / "ledger"), "--work-dir", str(directory / "work")]
        self.argv += ["--store", str(directory / "models"), "--metrics-port", "0", "--lock-ttl-s", "1"]
        self.argv += ["--no-reward-rounds", "--no-policy-rounds", "--flush-rows", "50", "--flush-age-s", "0.05", *args]
        self.process: subprocess.Popen[bytes] | None = None
        self._logged = 0  # bytes before the last start

    @property
    def log(self) -> str:
        """What was logged since the last start."""
        return self.log_path.read_bytes()[self._logged :].decode()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            self._logged = log.tell()
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=subprocess.STDOUT)
        return self.process

    def wait_for_log(self, text: str, patience_s: float = 60.0) -> None:
        assert self.process is not None
        deadline = time.monotonic() + patience_s
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """As ``kill -9`` does; no-op when it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
