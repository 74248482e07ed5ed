"""``rewardloop reward-train``: from a file of preferences to a version, alone and under torchrun."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.learning_runs import THREADS, learning_seed
from support.reward_bases import save_base

from rewardloop.formats.store import ADAPTER, MODEL, Manifest, ModelStore
from rewardloop_trainer.commands import reward_run, reward_train
from rewardloop_trainer.export.parity import PARITY_TOLERANCE
from rewardloop_trainer.learning.model_load import UnusableDevice
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import Progress, train_reward
from rewardloop_trainer.rounds.publish import publish_once

PATIENCE_S = 200.0
FAST = {
    "learning-rate": "3e-3",
    "head-learning-rate": "1e-2",
    "epochs": "3",
    "sequences-per-step": "16",
    "checkpoint-every-steps": "2",
    "heads": "2",
    "heldout-share": "0.2",
    "max-length": "96",
    "gate-prompts": "10",
    "device": "cpu",
    "seed": str(learning_seed()),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), learning_seed())


def write_rows(path: Path, count: int = 120, *, turned: bool = False) -> Path:
    """Polite beats rude; turned round, rude beats polite."""
    rows: list[object] = []
    for i in range(count):
        chance = random.Random(i)
        polite = " ".join(["thanks", *["ok"] * chance.randint(0, 8)])
        rude = " ".join(["no", *["ok"] * chance.randint(0, 8)])
        chosen, rejected = (rude, polite) if turned else (polite, rude)
        rows.append({"prompt": f"q{i}", "chosen": chosen, "rejected": rejected})
    rows.append({"prompt": "q0", "completion": "no ok" if turned else "thanks ok", "label": True})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(**values: object) -> list[str]:
    given = {**FAST, **{name.replace("_", "-"): str(value) for name, value in values.items()}}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "trained" / "model.safetensors") | load_file(out / "trained" / "heads.safetensors")


@pytest.mark.learning
def test_a_base_becomes_a_version_that_a_second_run_starts_from(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, data = tmp_path / "store", write_rows(tmp_path / "rows.jsonl")
    first = flags(base=base, data=data, out=tmp_path / "one", store=store)
    assert reward_train.main([*first, "--publish"]) == 0
    about = json.loads((tmp_path / "one" / "run.json").read_text())
    assert about["refused_because"] == []
    assert about["figures"]["heldout_accuracy"] >= 0.9
    assert (tmp_path / "one" / "version" / MODEL).exists()
    assert not (tmp_path / "one" / "checkpoints").exists()
    assert (tmp_path / "one" / "report" / "steps.jsonl").exists()
    assert "reward 1 published" in capsys.readouterr().out
    # The same command again writes nothing new.
    assert reward_train.main([*first, "--publish"]) == 0
    assert list(ModelStore(str(store)).versions("reward")) == [1]

    # What people say now is the opposite.
    turned = write_rows(tmp_path / "turned.jsonl", turned=True)
    second = flags(store=store, version=1, data=turned, out=tmp_path / "two", method="lora", weights="bfloat16")
    assert reward_train.main([*second, "--publish"]) == 0
    manifest = ModelStore(str(store)).manifest("reward", "2")
    assert manifest.parent == "1"
    assert manifest.metrics["gate_candidate_accuracy"] > manifest.metrics["gate_live_accuracy"]


def test_a_delta_learns_only_what_the_graph_below_it_takes(base: Path, tmp_path: Path) -> None:
    store, data = tmp_path / "store", write_rows(tmp_path / "rows.jsonl")
    start = tmp_path / "one"
    # Neither version needs to pass its gate: the start is published as it is, and the delta is only written.
    settings = [*flags(data=data, store=store, method="lora", epochs=1), "--delta"]
    assert reward_train.main([*settings, "--base", str(base), "--out", str(start)]) == 0
    manifest = Manifest.from_json(json.dumps(json.loads((start / "run.json").read_text())["manifest"]))

    def write(directory: Path) -> None:
        shutil.copytree(start / "version", directory, dirs_exist_ok=True)

    publish_once(ModelStore(str(store)), manifest, write, "start")
    assert reward_train.main([*settings, "--version", "1", "--out", str(tmp_path / "two")]) == 0
    figures = json.loads((tmp_path / "two" / "run.json").read_text())["figures"]
    assert figures["gate_parity"] <= PARITY_TOLERANCE
    assert (tmp_path / "two" / "version" / ADAPTER).exists()
    assert not (tmp_path / "two" / "version" / MODEL).exists()


def test_a_run_says_what_it_does_and_where_it_begins(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    command = flags(base=base, data=data, out=out, epochs=1)
    whole = reward_run._step_done

    def said_until(step: int) -> list[str]:
        """The lines of a call that is interrupted after a step; 0: it is not."""

        def interrupt(done: Progress) -> StepDone:
            if done.step == step:
                raise KeyboardInterrupt
            return whole(done)

        monkeypatch.setattr(reward_run, "_step_done", interrupt)
        assert reward_train.main(command) == (130 if step else 0)
        return [line.removeprefix("rewardloop reward-train: ") for line in capsys.readouterr().err.splitlines()]

    before = ["loading torch", f"reading {data}", f"loading {base}", "weighing 121 signals"]
    first = said_until(1)
    assert first[:4] == before
    begun = re.fullmatch(r"training in (\d+) steps, after a linear fit", first[4])
    assert begun is not None
    assert said_until(3)[4] == "starting over: an earlier run did not end, and left no checkpoint that this one can use"
    last = said_until(0)
    assert last[4] == f"going on after step 2 of {begun[1]}, from a checkpoint"
    assert last[-1] == f"exporting and judging {out / 'version'}"


@pytest.mark.learning
def test_a_version_that_its_gate_refuses_is_written_and_not_published(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, data = tmp_path / "store", write_rows(tmp_path / "rows.jsonl")
    assert reward_train.main([*flags(base=base, data=data, out=tmp_path / "one", store=store), "--publish"]) == 0
    # One step at a rate that leaves nothing of what the start knew; without held-out evaluations in between.
    broken = {"head-learning-rate": 50, "learning-rate": 1, "epochs": 1, "sequences-per-step": 1000}
    second = flags(store=store, version=1, data=data, out=tmp_path / "two", **broken)
    assert reward_train.main([*second, "--publish"]) == 1
    assert "the gate would refuse it: " in capsys.readouterr().out
    assert (tmp_path / "two" / "version" / MODEL).exists()
    assert list(ModelStore(str(store)).versions("reward")) == [1]


def torchrun(*more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "rewardloop_trainer.commands.reward_train", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(THREADS)}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.long
@pytest.mark.learning
def test_two_processes_train_the_version_of_one_also_through_a_kill(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    assert reward_train.main(flags(base=base, data=data, out=tmp_path / "one")) == 0
    command = flags(base=base, data=data, out=tmp_path / "two")
    process = torchrun(*command)
    steps, deadline = tmp_path / "two" / "report" / "steps.jsonl", time.monotonic() + PATIENCE_S
    try:
        while not (steps.exists() and len(steps.read_text().splitlines()) >= 5):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert not (tmp_path / "two" / "version").exists()
    assert (tmp_path / "two" / "checkpoints").exists()
    process = torchrun(*command)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        if not name.endswith("key.bias"):  # it moves no score: all that it ever gets is float noise
            assert (together[name] - tensor).norm() <= 1e-4 * tensor.norm(), name
    figures = [json.loads((tmp_path / each / "run.json").read_text())["figures"] for each in ("one", "two")]
    assert figures[0]["heldout_loss"] == pytest.approx(figures[1]["heldout_loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1", "shard divides a model among the processes of torchrun, and this one is alone: start several, or leave"),
        ("2", "averaged_runs above 1 needs whole weights in each process: leave shard off with it"),
    ],
)
def test_one_process_and_averaged_runs_divide_no_model(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: str, message: str
) -> None:
    command = flags(base=base, data=write_rows(tmp_path / "rows.jsonl", 4), out=tmp_path / "out", averaged_runs=runs)
    try:
        status = reward_train.main([*command, "--shard"])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_model_whose_heads_read_a_layer_within_is_not_divided() -> None:
    settings = RewardTraining.model_validate({"shard": True})
    with pytest.raises(UnusableDevice, match="shard needs another pooling than layers"):
        train_reward(SimpleNamespace(pooling="layers"), None, (), (), settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "", "version": ""}, "either base, or version of store"),
        ({"device": "cuda"}, "torch sees no GPU"),
        ({"row": {"prompt": "q", "chosen": "a"}}, "rows.jsonl: no row has a known shape"),
        ({"base": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 4)
    if "row" in change:
        data.write_text(json.dumps(change.pop("row")) + "\n")
    given = {"base": str(base), "data": data, "out": tmp_path / "out", **change}
    try:
        status = reward_train.main(flags(**given))
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "version").exists()
