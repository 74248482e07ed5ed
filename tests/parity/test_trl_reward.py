"""TRL's GRPOTrainer trains a small policy on the rewards of a real serving process, through the integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.policy_versions import END, PAD, byte_tokenizer, small_llama
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_client.integrations import trl as integration

pytestmark = pytest.mark.long

trl = pytest.importorskip("trl")

STEPS = 5
PROMPTS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("trl")
    publish_sum_version(ModelStore(directory / "models"))
    with serving(directory / "models", redis_url, directory / "serve.log") as serve:
        with RewardloopClient(serve.address) as client:
            client.promote("reward", "1")
        yield serve


def trainer(directory: Path, function: Callable[..., Any]) -> Any:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD)
    settings = trl.GRPOConfig(
        output_dir=str(directory),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        seed=0,
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": PROMPTS * 4})
    return trl.GRPOTrainer(
        model=small_llama(3), reward_funcs=[function], args=settings, train_dataset=data, processing_class=tokenizer
    )


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_grpo_learns_for_some_steps(kind: str, served: ServeProcess, tmp_path: Path) -> None:
    make = {"blocking": integration.reward, "asynchronous": integration.async_reward}[kind]
    training = trainer(tmp_path, make(served.address, empty_reward=0.0))
    before = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
    training.train()
    logged = [each for each in training.state.log_history if "rewards/rewardloop_reward/mean" in each]
    print(kind, [round(each["rewards/rewardloop_reward/mean"], 3) for each in logged])
    assert training.state.global_step == STEPS
    assert len(logged) == STEPS
    assert all(math.isfinite(each["rewards/rewardloop_reward/mean"]) for each in logged)
    assert any(each["reward_std"] > 0 for each in logged)
    assert any(not weight.equal(before[name]) for name, weight in training.model.named_parameters())


def test_rewards_are_the_scores_of_the_service(served: ServeProcess) -> None:
    completions = ["one", "two words", "three"]
    found = integration.reward(served.address)(prompts=["alpha"] * 3, completions=completions)
    with RewardloopClient(served.address) as client:
        assert found == list(client.score("alpha", completions).values)
