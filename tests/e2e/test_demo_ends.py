"""`rewardloop demo` ends when it is told to, also before it has started everything."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.long


def test_sigterm_while_the_starter_is_trained_ends_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rewardloop_cli.main", "demo", "--out", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        said = []
        for line in demo.stdout:
            said.append(line)
            if "starter has run" in line:
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGTERM)
        rest, _ = demo.communicate(timeout=60)
    assert started, said
    assert demo.returncode == 1
    assert "stopped before it had started" in rest
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
