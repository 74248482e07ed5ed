"""A whole `rewardloop up` of a small reward model, as processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rewardloop_client import RewardloopClient
from rewardloop_local.ports import free_port
from rewardloop_trainer.archive.ledger import Ledger
from support.learning_runs import THREADS, learning_seed

PATIENCE_S = 480.0


@dataclass
class Up:
    """A `rewardloop up` on a small reward model that learns from 200 signals."""

    data: Path
    log: Path
    serve_args: str = ""
    ports: dict[str, int] = field(
        default_factory=lambda: {name: free_port() for name in ("listen", "metrics-port", "trainer-metrics-port")}
    )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports['listen']}"

    @contextmanager
    def running(self) -> Iterator[RewardloopClient]:
        trainer = f"--reward-min-signals 200 --torch-threads {THREADS} --seed {learning_seed()} --flush-age-s 0.2"
        trainer += " --reward.learning-rate 0.001 --reward.gate-prompts 15 --reward.gate-margin 0.05"
        settings = {**self.ports, "listen": self.address, "data": self.data, "train-args": trainer}
        settings |= {"serve-args": f"--intra-op-threads 1 --no-spin {self.serve_args}", "gateway-listen": ""}
        argv = [sys.executable, "-m", "rewardloop_local.up", *(f"--{name}={value}" for name, value in settings.items())]
        with self.log.open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
        try:
            with RewardloopClient(self.address, timeout_s=10) as client:
                self.until(lambda: self.log.read_text().endswith("Ctrl-C stops it.\n"), process)
                yield client
        finally:
            process.terminate()
            process.wait(60)

    def until(self, holds: object, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():  # type: ignore[operator]
            said = "".join(path.read_text() for path in [self.log, *self.data.glob("logs/*.log")])
            assert time.monotonic() < deadline, said
            assert process is None or process.poll() is None, said
            time.sleep(0.1)

    def archived(self) -> list[str]:
        return Ledger(self.data / "ledger", writable=False).event_ids()
