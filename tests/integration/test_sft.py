"""``rewardloop sft``: from a base and a file to a directory that exports, through kills."""

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
from support.learning_runs import THREADS, learning_seed
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop_trainer.commands import export as export_cli
from rewardloop_trainer.commands import sft as sft_cli
from rewardloop_trainer.data.dialogues import Dialogue
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.policy.sft import SftProgress, train_sft
from rewardloop_trainer.policy.sft_settings import SftSettings

ENCODER = byte_encoder(64)
ANSWERS = ("no", "yes, of course", "ask me another day")


def dialogues(count: int) -> list[Dialogue]:
    return [Dialogue.answered((Turn("user", f"question {i}"),), ANSWERS[i % 3]) for i in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    small_llama(learning_seed(1)).save_pretrained(directory)
    ENCODER.tokenizer.save(str(directory / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    return directory


def write_rows(path: Path, count: int) -> Path:
    rows = [{"prompt": f"question {i}", "completion": ANSWERS[i % 3]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--device", "cpu", "--torch-threads", str(THREADS), "--learning-rate", "0.01", "--batch-examples", "8"]
    fixed += ["--seed", str(learning_seed())]
    return ["--base", str(base), "--data", str(data), "--out", str(out), *fixed, *more]


def umask() -> int:
    """The bits that new files do not get."""
    os.umask(found := os.umask(0))
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


@pytest.mark.learning
def test_a_base_learns_a_file_with_bad_rows_and_the_result_exports(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", 60), tmp_path / "out"
    with data.open("a") as file:
        file.write('{"prompt": "what?"}\nnot json\n')
    more = ("--epochs", "6", "--heldout-share", "0.2", "--packing")
    assert sft_cli.main(command(base, data, out, *more)) == 1
    said = capsys.readouterr()
    assert "data.jsonl:61: has neither prompt and completion nor messages" in said.err
    assert "data.jsonl:62: is not JSON" in said.err
    kept = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == [61, 62]
    before, after = said.out.split("perplexity ")[1].split(" (")[0].split(" -> ")
    assert float(after) < 0.2 * float(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out", "out.rejected.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask()}
    store = str(tmp_path / "models")
    assert export_cli.main(["--base", str(out), "--store", store, "--model", "policy"]) == 0
    assert ModelStore(store).versions("policy") == [1]


def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_rows(tmp_path / "data.jsonl", 3), tmp_path / "out"
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"a": 1}\n')
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for arguments, reason in (
        (command(base, tmp_path / "absent.jsonl", out), "no such file"),
        (command(base, empty, out), "has no row to train on"),
        (command(tmp_path / "no-base", data, out), "there is no such directory"),
        (command(taken, data, out), "its configuration cannot be read"),
        (command(base, data, taken), "exists already"),
        (command(base, data, out, "--max-length", "8"), "there is nothing to train on"),
    ):
        assert sft_cli.main(arguments) == 2
        assert reason in capsys.readouterr().err
    assert not out.exists()
    assert [path.name for path in taken.iterdir()] == ["file"]


def test_a_killed_command_goes_on_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", 64)
    more = ("--epochs", "12", "--heldout-share", "0", "--checkpoint-every-steps", "5")
    assert sft_cli.main(command(base, data, tmp_path / "whole", *more)) == 0
    out = tmp_path / "killed"
    argv = [sys.executable, "-m", "rewardloop_trainer.commands.sft", *command(base, data, out, *more)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / ".killed.checkpoints"
    deadline = time.monotonic() + 100
    while not (checkpoints.is_dir() and any(p.name.isdecimal() for p in checkpoints.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert sft_cli.main(command(base, data, out, *more)) == 0
    assert "rewardloop sft: going on after step " in capsys.readouterr().err
    assert not checkpoints.exists()
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(out)[name]), name


@pytest.mark.learning
@pytest.mark.long
def test_two_processes_that_divide_the_model_write_the_files_of_one(tmp_path: Path, base: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", 48)
    more = ("--checkpoint-every-steps", "2")
    assert sft_cli.main(command(base, data, tmp_path / "one", *more)) == 0
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "rewardloop_trainer.commands.sft", *command(base, data, tmp_path / "two", *more, "--shard")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert alone.keys() == together.keys()
    assert all((together[name] - value).norm() <= 1e-4 * value.norm() for name, value in alone.items())
    for path in (tmp_path / "one").iterdir():
        if path.name != "model.safetensors":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_stopped_run_goes_on_and_packing_takes_the_same_steps(tmp_path: Path) -> None:
    settings = SftSettings.model_validate({"epochs": 2, "batch_examples": 8, "learning_rate": 1e-3})
    whole, stopped, resumed, packed = (small_llama(1).double() for _ in range(4))
    seen: list[SftProgress] = []
    outcome = train_sft(whole, ENCODER, dialogues(32), settings, seen.append, heldout=dialogues(3))
    steps = 0

    def count(_: SftProgress) -> None:
        nonlocal steps
        steps += 1

    with pytest.raises(TrainingStopped):
        train_sft(
            stopped,
            ENCODER,
            dialogues(32),
            settings,
            count,
            heldout=dialogues(3),
            checkpoint_dir=tmp_path,
            should_stop=lambda: steps == 3,
        )
    rest: list[SftProgress] = []
    again = train_sft(
        resumed, ENCODER, dialogues(32), settings, rest.append, heldout=dialogues(3), checkpoint_dir=tmp_path
    )
    assert rest == seen[3:]
    assert again == outcome
    in_rows = settings.model_copy(update={"packing": True})
    together = train_sft(packed, ENCODER, dialogues(32), in_rows, heldout=dialogues(3))
    assert together.last_loss == pytest.approx(outcome.last_loss, abs=1e-8)
    for one, other in zip(whole.parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
