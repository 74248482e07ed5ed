"""PPO killed with kill -9: whatever it was doing, it goes on to the weights of a run that was left alone."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from support.policy_versions import byte_encoder, small_llama

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.learning.run_control import RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward

pytestmark = pytest.mark.long

STEPS = 8
PROMPTS: list[Prompt] = [(Turn("user", text),) for text in ("up", "down", "left", "over there", "right")]
SETTINGS = OnlineSettings.model_validate(
    {
        "steps": STEPS,
        "prompts": 4,
        "responses": 2,
        "max_new_tokens": 8,
        "temperatures": [1.0, 0.8],
        "epochs": 2,
        "minibatch": 4,
        "learning_rate": 3e-3,
        "kl_target": 0.5,
        "kl_horizon": 50,
        "max_update_kl": 100.0,
        "max_kl": 1000.0,
        "rewards": {"normalise": True},
        "critic": {"warmup_steps": 1},
        "checkpoint_every_steps": 1,
    }
)


def vowels(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(sum(c in "aeiou" for c in text) - 0.1 * len(text)) for text in group] for group in texts]


def learn(directory: Path) -> None:
    """Train, with a line in ``steps`` for each step, and save the policy: what runs in a process of its own."""
    torch.set_num_threads(1)

    def note(done: StepDone) -> None:
        with (directory / "steps").open("a") as file:
            file.write(f"{done.step}\n")

    outcome = train_online(
        small_llama(),
        byte_encoder(64),
        OnlineTask(algorithm_of("ppo", SETTINGS), SETTINGS, PROMPTS),
        vowels,
        RunControl(directory / "checkpoints", note),
        seed=3,
    )
    save_model(outcome.model, str(directory / "model.safetensors"))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rewardloop_trainer.policy.online.train", "transformers.models.llama.modeling_llama"]
    )
    return context


def started(processes: ForkServerContext, directory: Path) -> BaseProcess:
    directory.mkdir(exist_ok=True)
    process = processes.Process(target=learn, args=(directory,))
    process.start()
    return process


def finished(processes: ForkServerContext, directory: Path) -> str:
    """Learn to the end; the sha256 of the weights."""
    process = started(processes, directory)
    process.join(120)
    assert process.exitcode == 0
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def steps(directory: Path) -> list[int]:
    file = directory / "steps"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_killed_at_any_moment_it_ends_with_the_same_weights(processes: ForkServerContext, tmp_path: Path) -> None:
    whole = finished(processes, tmp_path / "whole")
    chance = random.Random(5)
    killed_after: list[int] = []
    while len(killed_after) < 10:
        directory = tmp_path / str(chance.random())
        process = started(processes, directory)
        wanted, moment = chance.randrange(STEPS - 1), chance.random()
        while len(steps(directory)) < wanted and process.is_alive():
            time.sleep(0.002)
        time.sleep(0.1 * moment)  # somewhere in a step, or in the writing of its checkpoint
        process.kill()
        process.join()
        if process.exitcode == 0:
            continue  # too late: it had ended
        assert process.exitcode == -9
        killed_after.append(len(steps(directory)))
        assert finished(processes, directory) == whole
        seen = steps(directory)
        # What was done is not done again, but for the step whose checkpoint was being written.
        assert seen[-1] == STEPS
        assert len(seen) - STEPS <= 1
    assert len(set(killed_after)) > 3
