"""The trainer's settings: where they come from, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rewardloop.process.settings import parse
from rewardloop_trainer.settings import TrainSettings


def read(*argv: str) -> TrainSettings:
    return parse(TrainSettings, argv, "rewardloop train")


def test_flags_outrank_environment_outranks_file_outranks_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "train.toml"
    config.write_text('server = "file:1"\nstore = "file"\narchive = "file"\n[reward]\nepochs = 3\nheads = 2\n')
    monkeypatch.setenv("REWARDLOOP_SERVER", "environment:1")
    monkeypatch.setenv("REWARDLOOP_STORE", "environment")
    monkeypatch.setenv("REWARDLOOP_REWARD__EPOCHS", "4")
    settings = read("--config", str(config), "--server", "flag:1")
    assert (settings.server, settings.store, settings.archive) == ("flag:1", "environment", "file")
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert (settings.reward.epochs, settings.reward.heads) == (4, 2)


def test_nested_flags_reach_their_group() -> None:
    settings = read("--reward.learning-rate", "0.001", "--reward.lora.rank", "4", "--policy.beta", "0.5")
    assert (settings.reward.learning_rate, settings.reward.lora.rank, settings.policy.beta) == (0.001, 4, 0.5)
    assert settings.reward.epochs == TrainSettings().reward.epochs


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("reward_min_signal = 3\n", "reward_min_signal"),
        ("[reward]\nepoch = 3\n", "reward.epoch"),
        ("[policy]\nbeta = -1\n", "policy.beta"),
        ("[reward]\ndelta = true\n", "delta needs method lora"),
        ("[reward]\naveraged_runs = 3\nmethod = 'lora'\n", "averaged_runs"),
        ("[policy]\nalgorithm = 'reinforce'\n", "policy.algorithm"),
        ("[policy]\nalgorithm = 'grpo'\n[policy.online]\nresponses = 1\n", "online.responses must be 2 or more"),
        ("heldout_share = 1.5\n", "heldout_share"),
        ("this is no toml", "train.toml"),
    ],
)
def test_unknown_and_wrong_settings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        read("--config", str(config))
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_one_answer_to_a_prompt_is_enough_for_ppo_which_has_a_critic() -> None:
    settings = read("--policy.algorithm", "ppo", "--policy.online.responses", "1", "--policy.online.steps", "7")
    assert (settings.policy.algorithm, settings.policy.online.responses, settings.policy.online.steps) == ("ppo", 1, 7)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainSettings().seed = 3  # type: ignore[misc]


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from rewardloop_trainer.app import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert stopped.code == 0
print(sorted({"torch", "transformers", "pyarrow", "numpy", "redis", "grpc"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
