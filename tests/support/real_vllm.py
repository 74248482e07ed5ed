"""A real vLLM server as a process of its own, for tests. It is installed apart, because it wants other versions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from support.processes import free_port

_START_S = 280.0


# Arguments for a policy that samples and takes adapters.
SAMPLES = (
    *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-model-len", "64"),
    *("--logprobs-mode", "processed_logprobs"),
)
# Arguments for a classifier.
POOLS = ("--runner", "pooling", "--max-model-len", "128")


class RealVllm:
    """``vllm serve`` over a model's directory, on the CPU in float32."""

    def __init__(self, model: Path, name: str, log: Path, *args: str) -> None:
        program = shutil.which("vllm")
        if program is None:  # not one of the tools that CI requires: vLLM needs an environment of its own
            pytest.skip("no vllm on the PATH: docs/how-to/vllm.md says how to install it")
        self._command = [program, "serve", str(model)]
        self._command += ["--served-model-name", name, "--dtype", "float32", "--max-num-seqs", "8", "--enforce-eager"]
        self._command += args
        self._log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start, on the same port as before."""
        own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        own |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
        # Our packages are not its own, and the one thread that tests give to OpenMP is little for an engine.
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        command = [*self._command, "--host", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**kept, **own}, start_new_session=True
            )

    def until_serving(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(self._log.read_text(errors="replace")[-4000:])

    def kill(self) -> None:
        """End it and its engine at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
