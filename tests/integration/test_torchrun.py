"""Several processes train one policy: they take the steps of one; a killed one is noticed, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import torchrun_training
from support.learning_runs import THREADS

pytestmark = pytest.mark.long

ALGORITHMS = ("ppo", "grpo", "online-dpo", "dpo", "kto")
PATIENCE_S = 200.0


def torchrun(directory: Path, *algorithms: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += [str(Path(torchrun_training.__file__)), str(directory), *algorithms]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(THREADS)}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def history(directory: Path) -> list[tuple[int, dict[str, float]]]:
    return [(step, figures) for step, figures in json.loads((directory / "figures.json").read_text())]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every algorithm."""
    directory = tmp_path_factory.mktemp("two")
    process = torchrun(directory, *ALGORITHMS)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return directory


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_take_the_steps_of_one(algorithm: str, two: Path, tmp_path: Path) -> None:
    torchrun_training.main(tmp_path, algorithm)
    alone, together = history(tmp_path), history(two / algorithm)
    assert [step for step, _ in alone] == [step for step, _ in together] == list(range(1, 7))
    for (step, one), (_, both) in zip(alone, together, strict=True):
        assert one.keys() == both.keys()
        for name, value in one.items():
            assert both[name] == pytest.approx(value, rel=1e-5, abs=1e-4), (step, name)
    assert len({tuple(figures.values()) for _, figures in alone}) == 6


def test_a_killed_process_ends_the_run_by_name_and_the_same_command_goes_on(two: Path, tmp_path: Path) -> None:
    directory = tmp_path / "ppo"
    directory.mkdir()
    (directory / "wait").touch()
    process = torchrun(tmp_path, "ppo")
    victim = directory / "pid.1"
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not (victim.exists() and victim.read_text()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(int(victim.read_text()), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in output
    assert "Signal 9 (SIGKILL)" in output
    assert not (directory / "figures.json").exists()

    (directory / "wait").unlink()
    process = torchrun(tmp_path, "ppo")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert history(directory) == history(two / "ppo")[2:]
    resumed, whole = (load_file(d / "ppo" / "model.safetensors") for d in (tmp_path, two))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
