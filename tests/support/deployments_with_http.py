"""`rewardloop up` on small models, with callers and the HTTP door, as a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rewardloop.formats.store import ModelStore
from rewardloop_local.ports import free_port
from support.doors import CallersFile
from support.policy_versions import byte_encoder, publish_policy, small_llama
from support.reward_graphs import publish_sum_version

PATIENCE_S = 120.0
ROLES = ("score", "feedback", "generate")


@dataclass
class HttpDeployment:
    """What a test needs of the deployment.

    Attributes:
        tokens: By the name of its caller.
    """

    directory: Path
    gateway_args: Sequence[str] = ()
    policy_args: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def log_path(self) -> Path:
        return self.directory / "up.log"

    def start(self) -> None:
        data = self.directory / "data"
        store = ModelStore(data / "models")
        publish_sum_version(store)
        publish_policy(store, small_llama(1), byte_encoder())
        callers = CallersFile(self.directory)
        self.tokens = {
            "shop": callers.add("shop", *ROLES),
            "scorer": callers.add("scorer", "score"),
            "anna": callers.add("anna", "label"),
            "operators": callers.add("operators", "view", "admin"),
        }
        (self.directory / "token").write_text(callers.add("processes", "score", "generate", "admin"))
        flags = {
            "data": data,
            "listen": self.grpc,
            "policy-listen": f"127.0.0.1:{free_port()}",
            "gateway-listen": f"127.0.0.1:{self.http_port}",
            "metrics-port": 0,
            "trainer-metrics-port": 0,
            "policy-metrics-port": 0,
            "callers": callers.path,
            "token-file": self.directory / "token",
            "serve-args": "--intra-op-threads 1 --no-spin --load-probe never",
            "train-args": "--torch-threads 1",
            "policy-args": self.policy_args,
            "gateway-args": " ".join(self.gateway_args),
        }
        argv = [sys.executable, "-m", "rewardloop_local.up", *(f"--{name}={value}" for name, value in flags.items())]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)

    def until_up(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as reply:
                    if b'"policy":true' in reply.read().replace(b" ", b""):
                        return
            except (urllib.error.URLError, OSError):
                pass  # not listening or not warm yet: the deadline decides
            time.sleep(0.2)
        raise AssertionError(self.log_path.read_text())

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


@contextmanager
def http_deployment(directory: Path, *gateway_args: str, policy_args: str = "") -> Iterator[HttpDeployment]:
    """A deployment that answers; ended with the block."""
    deployment = HttpDeployment(directory, gateway_args, policy_args)
    deployment.start()
    try:
        deployment.until_up()
        yield deployment
    finally:
        deployment.stop()
