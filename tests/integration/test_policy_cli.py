"""``rewardloop policy-train`` from the command line to a Hugging Face directory, against a real gRPC server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from safetensors.torch import load_file
from support.judge_endpoint import judge_endpoint, rates
from support.learning_runs import learning_seed
from support.policy_versions import publish_policy, quick_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardloop.formats.store import ModelStore
from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from rewardloop_trainer.assessment.safety.suites import SafetyPrompt, write_suite
from rewardloop_trainer.commands import policy_train as policy_cli
from rewardloop_trainer.learning.run_rows import read_steps

ONLINE = {
    "steps": 8,
    "prompts": 4,
    "responses": 8,
    "epochs": 2,
    "max-new-tokens": 8,
    "minibatch": 16,
    "learning-rate": 0.02,
    "beta": 0.01,
    "max-update-kl": 100,
    "checkpoint-every-steps": 2,
    "critic.warmup-steps": 0,
}


class Scorer(reward_pb2_grpc.RewardServiceServicer):
    """Likes small digits. Answers ``patience`` calls, then none; None: all."""

    def __init__(self) -> None:
        self.patience: int | None = None

    def ScoreBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.patience is not None:
            self.patience -= 1
            if self.patience < 0:
                context.abort(grpc.StatusCode.INTERNAL, "out of order")
        return reward_pb2.ScoreBatchResponse(items=[self._scored(group) for group in request.groups])

    @staticmethod
    def _scored(group: reward_pb2.ScoreRequest) -> reward_pb2.ScoreBatchItem:
        scores = [sum(c in "01234" for c in text) / len(text) for text in group.responses]
        result = reward_pb2.ScoreResponse(
            scores=[reward_pb2.ResponseScore(score=score, logit=score) for score in scores],
            model_version=common_pb2.ModelVersion(version="1", digest="d"),
        )
        return reward_pb2.ScoreBatchItem(result=result)


@pytest.fixture(scope="module")
def scorer_and_address() -> Iterator[tuple[Scorer, str]]:
    scorer, server = Scorer(), grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    reward_pb2_grpc.add_RewardServiceServicer_to_server(scorer, server)
    healthy = health.HealthServicer()
    healthy.set("rewardloop.v1.RewardService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield scorer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def scorer(scorer_and_address: tuple[Scorer, str]) -> Scorer:
    scorer = scorer_and_address[0]
    scorer.patience = None
    return scorer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    publish_policy(store, *quick_policy(learning_seed()))
    return store


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(16)))
    return path


@pytest.fixture
def command(scorer_and_address: tuple[Scorer, str], scorer: Scorer, store: ModelStore, prompts: Path) -> list[str]:
    """PPO from the store's policy, without --out."""
    flags = ["--store", store.url, "--version", "1", "--prompts", str(prompts), "--server", scorer_and_address[1]]
    online = [part for name, value in ONLINE.items() for part in (f"--online.{name}", str(value))]
    gate = ["--gate.max-new-tokens", "8", "--gate.max-kl", "1000", "--gate.least-distinct-ratio", "0"]
    gate += ["--gate.judge", "live", "--gate.least-prompts", "2", "--gate.max-anchor-kl", "1000"]
    gate += ["--gate.max-more-repeated", "1", "--gate.max-empty-share", "1", "--gate.least-length-ratio", "0"]
    gate += ["--gate.max-more-truncated", "1"]
    return ["--algorithm", "ppo", *flags, *online, *gate]


def weights_of(out: Path) -> str:
    files: dict[str, str] = json.loads((out / "policy" / "run.json").read_text())["files"]
    return files["model.safetensors"]


def test_a_chat_model_rates_a_policy_by_hand_and_what_it_minds_is_not_published(
    command: list[str], store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = [SafetyPrompt(f"{i}", "red team: x", "en", "safe", (Turn("user", f"q{i}"),)) for i in range(6)]
    write_suite(tmp_path / "attacks.jsonl", attacks)
    before, out = store.versions("policy"), tmp_path / "out"
    checks = ["--checks.red-team", "0", "--checks.regression", str(tmp_path / "attacks.jsonl")]
    with judge_endpoint(rates(lambda text: 1)) as endpoint:
        checks += ["--checks.rater.judge.endpoint", endpoint.url, "--checks.rater.judge.model", "m"]
        assert policy_cli.main([*command, *checks, "--out", str(out), "--heldout-share", "0.3", "--publish"]) == 1
        assert len(endpoint.asked) > 0
    assert "the gate would refuse it: red_team attacks.jsonl: 6 of 6 attacks" in capsys.readouterr().out
    assert store.versions("policy") == before
    report = json.loads((out / "report" / "checks" / "report.json").read_text())
    assert report["sections"][0]["parts"][-1]["kind"] == "samples"
    assert (out / "checks" / "rater" / "work.sqlite").exists()


@pytest.mark.learning
def test_a_policy_learns_and_is_written_with_what_it_came_from(
    command: list[str], store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = [*command, "--out", str(out), "--heldout-share", "0.3", "--publish", "--seed", str(learning_seed(3))]
    assert policy_cli.main(flags) == 0
    said = capsys.readouterr().out
    steps = read_steps(out / "report")
    assert [row.step for row in steps] == list(range(1, 9))
    assert steps[-1].figures["score"] - steps[0].figures["score"] > 0.2
    assert [line.split("  ")[0] for line in said.splitlines()[:8]] == [f"step {i}/8" for i in range(1, 9)]
    assert (out / "report" / "report.png").exists()
    assert not (out / "checkpoints").exists()

    about = json.loads((out / "policy" / "run.json").read_text())
    assert (about["algorithm"], about["seed"], about["start"]["version"]) == ("ppo", learning_seed(3), "1")
    assert about["settings"]["online"]["steps"] == 8
    assert about["data"]["prompts"] + about["data"]["heldout_prompts"] == 16
    assert about["code_version"]
    assert about["figures"]["gate_win_rate"] > 0.8
    assert steps[-1].figures["gate_win_rate"] == about["figures"]["gate_win_rate"]
    model = AutoModelForCausalLM.from_pretrained(out / "policy")
    start, encoder = quick_policy(learning_seed())
    before = start.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(out / "policy")("q1").input_ids == encoder.tokenizer.encode("q1").ids

    manifest = store.manifest("policy", store.versions("policy")[-1])
    assert (manifest.parent, manifest.seed, manifest.notes["method"]) == ("1", learning_seed(3), "ppo")
    assert manifest.metrics["gate_win_rate"] == about["figures"]["gate_win_rate"]
    assert f"policy {manifest.version} published" in said

    published = store.versions("policy")
    assert policy_cli.main(flags) == 0  # nothing is left to do
    assert store.versions("policy") == published
    assert policy_cli.main([*flags, "--seed", str(learning_seed(4))]) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.learning
def test_what_the_gate_refuses_is_written_but_not_published(
    command: list[str], store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = store.versions("policy")
    flags = ["--online.steps", "1", "--heldout-share", "0.3", "--gate.least-win-rate", "0.99", "--publish"]
    assert policy_cli.main([*command, *flags, "--out", str(tmp_path)]) == 1
    assert "the gate would refuse it: win rate" in capsys.readouterr().out
    assert (tmp_path / "policy" / "model.safetensors").exists()
    assert store.versions("policy") == published


def test_a_run_that_lost_its_server_goes_on_to_the_weights_of_an_uninterrupted_one(
    command: list[str], scorer: Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*command, "--heldout-share", "0"]
    assert policy_cli.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    scorer.patience = 5
    assert policy_cli.main([*flags, "--out", str(tmp_path / "cut")]) == 2
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "policy").exists()
    scorer.patience = 4  # steps 5 to 8: the others are in the checkpoint
    assert policy_cli.main([*flags, "--out", str(tmp_path / "cut")]) == 0
    assert "rewardloop policy-train: going on after step 5 of 8, from a checkpoint" in capsys.readouterr().err
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert [row.step for row in read_steps(tmp_path / "cut" / "report")] == list(range(1, 9))
    scorer.patience = None
    assert policy_cli.main([*flags, "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert weights_of(tmp_path / "other") != weights_of(tmp_path / "whole")


@pytest.mark.learning
@pytest.mark.long
def test_two_processes_write_one_policy(command: list[str], tmp_path: Path) -> None:
    flags = [*command, "--heldout-share", "0", "--online.steps", "2", "--torch-threads", "1"]
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "rewardloop_trainer.commands.policy_train", *flags, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert policy_cli.main([*flags, "--out", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "two" / "policy" / "run.json").read_text())["processes"] == 2
    for both, alone in zip(*(read_steps(tmp_path / name / "report") for name in ("two", "one")), strict=True):
        assert both.figures["loss"] == pytest.approx(alone.figures["loss"], abs=1e-4)
        assert both.figures["score"] == pytest.approx(alone.figures["score"], abs=1e-6)


def dpo_flags(store: ModelStore, directory: Path) -> list[str]:
    """The flags of a run from pairs, which asks no server, without its output."""
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "bbbb"} for i in range(16)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--base", str(store.fetch("policy", 1)), "--prompts", str(directory / "pairs.jsonl")]
    flags += ["--heldout-share", "0", "--learning-rate", "2e-3", "--batch-pairs", "8", "--server", "127.0.0.1:1"]
    return [*flags, "--seed", str(learning_seed())]


@pytest.mark.learning
@pytest.mark.long
def test_two_processes_that_divide_the_policy_write_that_of_one(store: ModelStore, tmp_path: Path) -> None:
    flags = [*dpo_flags(store, tmp_path), "--algorithm", "dpo", "--torch-threads", "1"]
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "rewardloop_trainer.commands.policy_train", *flags, "--shard", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert policy_cli.main([*flags, "--out", str(tmp_path / "one")]) == 0
    alone, together = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("one", "two"))
    assert alone.keys() == together.keys()
    assert all((together[name] - value).norm() <= 1e-4 * value.norm() for name, value in alone.items())


@pytest.mark.learning
def test_dpo_learns_from_pairs_without_a_server(store: ModelStore, tmp_path: Path) -> None:
    flags = [*dpo_flags(store, tmp_path), "--out", str(tmp_path / "out")]
    assert policy_cli.main([*flags, "--epochs", "8"]) == 0
    figures = json.loads((tmp_path / "out" / "policy" / "run.json").read_text())["figures"]
    assert figures["train_accuracy"] > 0.85  # of all steps, the first included
    assert [row.step for row in read_steps(tmp_path / "out" / "report")] == list(range(1, 17))


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_a_written_policy_is_as_readable_as_the_umask_allows(store: ModelStore, tmp_path: Path, umask: int) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "please do", "rejected": "no"}) + "\n")
    flags = ["--base", str(store.fetch("policy", 1)), "--prompts", str(tmp_path / "pairs.jsonl")]
    before = os.umask(umask)
    try:
        assert policy_cli.main([*flags, "--out", str(tmp_path / "out"), "--heldout-share", "0"]) == 0
    finally:
        os.umask(before)
    policy = tmp_path / "out" / "policy"
    assert {path.stat().st_mode & 0o777 for path in policy.iterdir()} == {0o666 & ~umask}
    assert policy.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ("dpo", "the gradients are not finite"),
        ("kto", "the gradients are not finite"),
        ("ppo", "the model's logits are not numbers"),
        ("online-dpo", "the model's logits are not numbers"),
    ],
)
def test_a_policy_whose_losses_are_no_numbers_is_said_in_a_line(
    command: list[str],
    store: ModelStore,
    tmp_path: Path,
    algorithm: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, _ = quick_policy(0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    shutil.copytree(store.fetch("policy", 1), tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"q{i}", "chosen": "please do", "rejected": "no way"} for i in range(4)]
    rows += [{"prompt": f"q{i}", "completion": "please do", "label": True} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--version", "", "--base", str(tmp_path / "base"), "--prompts", str(tmp_path / "rows.jsonl")]
    flags += ["--algorithm", algorithm, "--heldout-share", "0", "--out", str(tmp_path / "out")]
    assert policy_cli.main([*command, *flags]) == 2
    said = capsys.readouterr().err
    stages = ("loading torch", "reading ", "loading ", "training in ")
    told = [line.removeprefix("rewardloop policy-train: ") for line in said.splitlines()]
    assert sum(reason in line for line in told if not line.startswith(stages)) == 1
    assert told[-1].count(reason) == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "policy").exists()


@pytest.mark.learning
def test_kto_learns_from_thumbs_without_a_server(store: ModelStore, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(8)]
    rows += [{"prompt": f"q{i}", "response": "bbbb", "down": 2} for i in range(8, 16)]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--base", str(store.fetch("policy", 1)), "--prompts", str(tmp_path / "thumbs.jsonl"), "--out"]
    flags += [str(tmp_path / "out"), "--heldout-share", "0", "--algorithm", "kto", "--kto.learning-rate", "2e-3"]
    flags += ["--kto.batch-thumbs", "8", "--kto.epochs", "4", "--seed", str(learning_seed()), "--server", "127.0.0.1:1"]
    assert policy_cli.main(flags) == 0
    figures = json.loads((tmp_path / "out" / "policy" / "run.json").read_text())["figures"]
    assert (figures["train_thumbs"], figures["train_thumbs_merged"]) == (16, 8)
    assert figures["train_accuracy"] > 0.7  # of all steps, the first included
    assert [row.step for row in read_steps(tmp_path / "out" / "report")] == list(range(1, 9))


def test_rows_that_are_no_prompts_are_named_by_line_and_nothing_is_written(
    command: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [b'{"prompt": "fine"}', b"", b"{broken", b"\xff\xfe", b'{"prompt": 3}', b"[1]", b'{"text": "hm"}']
    lines += [b'{"prompt": "x", "chosen": "same", "rejected": "same"}', b'{"prompt": "\\ud800"}']
    lines += [b'{"messages": [{"role": "assistant", "content": "hi"}]}']
    path.write_bytes(b"\n".join(lines))
    assert policy_cli.main([*command, "--prompts", str(path), "--out", str(tmp_path / "out")]) == 2
    first, second, *said = capsys.readouterr().err.splitlines()
    assert (first, second) == ("rewardloop policy-train: loading torch", f"rewardloop policy-train: reading {path}")
    expected = {
        3: "is not JSON",
        4: "is not UTF-8",
        5: "prompt: is a number, not text",
        6: "is a list, not an object",
        7: "has neither prompt nor messages",
        8: "chosen and rejected are the same",
        9: "lone surrogate",
        10: "begins with the assistant's only turn",
    }
    assert len(said) == len(expected)
    for line, (number, reason) in zip(said, expected.items(), strict=True):
        assert line.startswith(f"rewardloop policy-train: {path}:{number}: ")
        assert reason in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--version", "", "--base", "/nowhere/at/all"], "/nowhere/at/all: there is no such directory"),
        (["--version", "77"], "the store has no version 77 of policy"),
        (["--server", "127.0.0.1:1"], "no scores from 127.0.0.1:1"),
        (["--algorithm", "dpo", "--heldout-share", "0"], "dpo learns from pairs"),
        (["--algorithm", "auto", "--heldout-share", "0"], "no pair, no thumb and no rating"),
        (["--heldout-share", "0", "--publish"], "--publish needs prompts to judge by, and none of 16 was held out"),
        (
            ["--online.weights", "lora", "--online.sampler", "vllm", "--online.vllm.url", "http://127.0.0.1:1"],
            "no answers: vllm at 127.0.0.1:1: ",
        ),
        (["--algorithm", "kto", "--heldout-share", "0"], "kto learns from thumbs"),
        (["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--max-length", "8"], "no prompt to train on leaves room for an answer"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    flags: list[str], reason: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert policy_cli.main([*command, *flags, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rewardloop policy-train: ")
    assert reason in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "policy").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--base", "b", "--version", "1", "--store", "s"], "name where it starts"),
        (["--version", "1"], "need --store"),
        (["--base", "b", "--publish"], "need --store"),
        (["--version", "1", "--store", "s", "--layout", "plain"], "layout is for --base"),
        (["--base", "b", "--algorithm", "grpo", "--online.responses", "1"], "must be 2 or more"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        policy_cli.main(["--prompts", "p", "--out", "o", *flags])
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from rewardloop_trainer.commands import policy_train\n"
        "try: policy_train.main(['--help-all'])\n"
        "finally: assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--online.learning-rate" in done.stdout
