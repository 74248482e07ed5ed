"""Several processes train one model: they take the steps of one; a killed one is noticed, and the run goes on."""

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

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ONLINE = ("ppo", "grpo", "online-dpo")
OFFLINE = ("dpo", "kto", "sft", "reward", "reward-full-bound")
# Of which the processes divide the model: whole weights, adapters, tied embeddings, recomputed activations.
DIVIDED = (
    *("shard-dpo", "shard-kto", "shard-sft", "shard-reward", "shard-reward-full-bound", "shard-reward-dropout"),
    *("shard-sft-lora", "shard-sft-tied", "shard-dpo-recomputed", "shard-reward-lora"),
)
PATIENCE_S = 800.0  # everything waits for processes to end; only one that hangs takes so long


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
    process = torchrun(directory, *ONLINE, *OFFLINE, "reward-dropout", "sums")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return directory


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run each algorithm once in two processes that divide the model, and return their directory."""
    directory = tmp_path_factory.mktemp("divided")
    process = torchrun(directory, *DIVIDED, "bytes", "shard-bytes")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return directory


def alike(one: Path, both: Path) -> None:
    """The figures of every step, and the weights at the end, are the same within float error."""
    alone, together = history(one), history(both)
    assert [step for step, _ in alone] == [step for step, _ in together]
    for (step, figures), (_, others) in zip(alone, together, strict=True):
        assert figures.keys() == others.keys()
        for name, value in figures.items():
            assert others[name] == pytest.approx(value, rel=1e-5, abs=1e-4), (step, name)
    assert len({tuple(figures.values()) for _, figures in alone}) == len(alone)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same_weights(one: Path, both: Path) -> None:
    """The weights at the end are the same within float error."""
    alone, together = weights(one), weights(both)
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        # A bias of BERT's keys moves no score: all that it ever gets is float noise, of some 1e-7.
        assert (together[name] - tensor).norm() <= 1e-4 * tensor.norm() + 1e-6, name


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ONLINE)
def test_two_processes_take_the_steps_of_one(algorithm: str, two: Path, tmp_path: Path) -> None:
    torchrun_training.main(tmp_path, algorithm)
    alike(tmp_path, two / algorithm)
    assert [step for step, _ in history(tmp_path)] == list(range(1, 7))


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", OFFLINE)
def test_two_processes_end_in_the_weights_of_one(algorithm: str, two: Path, tmp_path: Path) -> None:
    torchrun_training.main(tmp_path, algorithm)
    alike(tmp_path, two / algorithm)
    assert len(history(tmp_path)) >= 6
    same_weights(tmp_path, two / algorithm)


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", [name for name in DIVIDED if "dropout" not in name])
def test_two_processes_that_divide_the_model_end_in_the_weights_of_one(
    algorithm: str, divided: Path, tmp_path: Path
) -> None:
    torchrun_training.main(tmp_path, algorithm)
    alike(tmp_path, divided / algorithm)
    same_weights(tmp_path, divided / algorithm)


def test_processes_that_divide_the_model_hold_half_of_weights_gradients_and_moments(divided: Path) -> None:
    for rank in (0, 1):
        whole, part = (
            json.loads((divided / name / f"bytes.{rank}.json").read_text()) for name in ("bytes", "shard-bytes")
        )
        assert whole["held"] == 4 * 4 * whole["values"]  # weight, gradient and two moments, in float32
        assert part["values"] == whole["values"]
        assert 0.45 < part["held"] / whole["held"] < 0.55
        assert part["alive"] < 0.6 * whole["alive"]  # so nothing that was gathered is left


@pytest.mark.parametrize(("began", "goes_on"), [("shard-sft", "sft"), ("reward", "shard-reward")])
def test_a_run_goes_on_whether_or_not_its_model_is_divided(
    began: str, goes_on: str, two: Path, divided: Path, tmp_path: Path
) -> None:
    killed(tmp_path, began)
    (tmp_path / began).rename(tmp_path / goes_on)
    process = torchrun(tmp_path, goes_on)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    whole = divided if goes_on.startswith("shard-") else two
    assert [step for step, _ in history(tmp_path / goes_on)] == [step for step, _ in history(whole / goes_on)[2:]]
    same_weights(tmp_path / goes_on, whole / goes_on)


def test_gradients_are_summed_in_a_bounded_part_of_their_memory(two: Path) -> None:
    found = json.loads((two / "sums" / "sums.json").read_text())
    assert found["are_sums"]
    assert found["without"] == [2]  # no process had that gradient
    assert found["left"] == []
    bucket = 4_000  # bytes of 1,000 values
    assert bucket < found["most_sent_at_once"] <= 2 * bucket
    # Two buckets, the gradient that was made for a process without one, and the copy of one that was not contiguous.
    assert found["peak"] <= 2 * bucket + 7 * 11 * 4 + 40 * 30 * 4 + 200 < found["whole"]


@pytest.mark.parametrize("algorithm", ["ppo", "sft", "reward", "reward-dropout", "shard-sft", "shard-reward-dropout"])
def test_a_killed_process_ends_the_run_by_name_and_the_same_command_goes_on(
    algorithm: str, two: Path, divided: Path, tmp_path: Path
) -> None:
    output = killed(tmp_path, algorithm)
    assert "rank      : 1 (local_rank: 1)" in output
    assert "Signal 9 (SIGKILL)" in output

    process = torchrun(tmp_path, algorithm)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    directory, uncut = tmp_path / algorithm, (divided if algorithm in DIVIDED else two) / algorithm
    assert history(directory) == history(uncut)[2:]
    resumed, whole = weights(directory), weights(uncut)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def killed(where: Path, algorithm: str) -> str:
    """Kill one of two processes after the third step, of which the second left a checkpoint. Returns what they said."""
    directory = where / algorithm
    directory.mkdir()
    (directory / "wait").touch()
    process = torchrun(where, algorithm)
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
    assert not (directory / "figures.json").exists()
    (directory / "wait").unlink()
    return output
