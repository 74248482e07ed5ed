"""Runs on shares of the signals whose weights are averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.reward_bases import encoder_for, save_base

from rewardloop.formats.text import Encoder, Turn
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.average import shares, train_averaged
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import train_reward

SETTINGS = RewardTraining(
    learning_rate=3e-3, head_learning_rate=1e-2, sequences_per_step=8, averaged_runs=2, checkpoint_every_steps=1
)
PAIRS = [Pair((Turn("user", f"q{i}"),), f"thanks {i % 7}", f"no {i % 5}", event_id=f"e{i}") for i in range(40)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_base("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_for("bert", max_length=96)


def test_every_signal_is_in_exactly_one_share() -> None:
    parts = shares(PAIRS, 3, seed=1)
    assert sorted(len(part) for part in parts) == [13, 13, 14]
    assert {p.event_id for part in parts for p in part} == {p.event_id for p in PAIRS}
    assert parts != shares(PAIRS, 3, seed=2)


def test_the_weights_are_the_mean_of_the_runs(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    outcome = train_averaged(model, encoder, PAIRS, PAIRS[:4], SETTINGS)
    alone = []
    for run, share in enumerate(shares(PAIRS, 2, SETTINGS.seed)):
        single = RewardModel.from_base(base, heads=2)
        settings = SETTINGS.model_copy(update={"averaged_runs": 1, "seed": 1_000_003 * run})
        train_reward(single, encoder, share, PAIRS[:4], settings)
        alone.append(single.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    assert not torch.equal(alone[0]["heads.weight"], alone[1]["heads.weight"])
    assert outcome.figures["train_examples"] == 40
    assert outcome.validation.pairs == 4


def test_a_killed_call_ends_in_the_same_weights(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    whole = RewardModel.from_base(base, heads=2)
    train_averaged(whole, encoder, PAIRS, [], SETTINGS)
    steps = 0

    def stop_in_the_second_run() -> bool:
        nonlocal steps
        steps += 1
        return steps > 8  # a run has 5 steps

    with pytest.raises(TrainingStopped):
        train_averaged(
            RewardModel.from_base(base, heads=2),
            encoder,
            PAIRS,
            [],
            SETTINGS,
            tmp_path,
            should_stop=stop_in_the_second_run,
        )
    assert (tmp_path / "finished-0").exists()
    resumed = RewardModel.from_base(base, heads=2)
    seen: list[int] = []
    train_averaged(resumed, encoder, PAIRS, [], SETTINGS, tmp_path, on_progress=lambda p: seen.append(p.step))
    assert seen[0] > 5  # the first run was not trained again
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not tmp_path.exists()


def test_adapters_are_not_averaged(base: Path, encoder: Encoder) -> None:
    model = RewardModel.from_base(base, heads=2)
    with_lora(model, LoraSettings.model_validate({}))
    with pytest.raises(ValueError, match="whole weights"):
        train_averaged(model, encoder, PAIRS, [], SETTINGS)
