"""verl's own reward manager, built of verl's own settings, asks the real service by `compute_score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.policy_versions import END, PAD, byte_tokenizer
from support.processes import ServeProcess, serving
from support.reward_graphs import publish_sum_version

from rewardloop.formats.store import ModelStore
from rewardloop_client import RewardloopClient
from rewardloop_client.integrations import verl as integration

pytestmark = pytest.mark.long

pytest.importorskip("verl", exc_type=ImportError)

PROMPT = "alpha"
ANSWERS = ["one", "two words", "three"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("verl")
    publish_sum_version(ModelStore(directory / "models"))
    with serving(directory / "models", redis_url, directory / "serve.log") as serve:
        with RewardloopClient(serve.address) as client:
            client.promote("reward", "1")
        yield serve


def settings(place: str, server: str) -> Any:
    """The settings of verl's PPO trainer with the reward function at ``place``, as its command line reads them."""
    from hydra import compose, initialize_config_module
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl

    given = {
        f"{place}.path": integration.__file__,
        f"{place}.name": "compute_score",
        f"+{place}.reward_kwargs.server": server,
    }
    with initialize_config_module("verl.trainer.config", version_base=None):
        found = compose("ppo_trainer", overrides=[f"{name}={value}" for name, value in given.items()])
    return migrate_legacy_reward_impl(found)


def rollouts(tokenizer: Any) -> Any:
    """The answers as verl hands them to a reward manager: padded, with the columns of its data set."""
    import numpy as np
    import torch
    from verl import DataProto

    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]
    longest = max(map(len, ids))
    padded = [each + [tokenizer.pad_token_id] * (longest - len(each)) for each in ids]
    mask = [[1] + [1] * len(each) + [0] * (longest - len(each)) for each in ids]
    columns = {
        "data_source": ["tests"] * len(ids),
        "reward_model": [{"ground_truth": ""} for _ in ids],
        "extra_info": [{"question": PROMPT} for _ in ids],
    }
    tensors = {
        "prompts": torch.ones(len(ids), 1, dtype=torch.long),
        "responses": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
    }
    return DataProto.from_dict(tensors, {name: np.array(value, dtype=object) for name, value in columns.items()})


@pytest.mark.parametrize("place", ["custom_reward_function", "reward.custom_reward_function"])
async def test_verl_rewards_are_the_scores_of_the_service(place: str, served: ServeProcess) -> None:
    from transformers import PreTrainedTokenizerFast
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END, pad_token=PAD)
    manager = load_reward_manager(settings(place, served.address), tokenizer)
    data = rollouts(tokenizer)
    found = [(await manager.run_single(data[i : i + 1]))["reward_score"] for i in range(len(ANSWERS))]
    with RewardloopClient(served.address) as client:
        assert found == [client.score(PROMPT, [answer]).values[0] for answer in ANSWERS]
    assert manager.assemble_rm_scores(data, found).sum(1).tolist() == pytest.approx(found)


def test_prompt_that_verl_does_not_tell_is_an_error_and_no_reward(served: ServeProcess, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt_key"):
        integration.compute_score("tests", "one", "", {"num_turns": 1}, server=served.address)
