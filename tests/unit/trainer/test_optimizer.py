"""AdamW on weights in float32 and in bfloat16, and the rates of its groups."""

from __future__ import annotations

import pytest
import torch
from support.reward_bases import config
from torch import Tensor, nn
from transformers import AutoModel

from rewardloop_trainer.learning.optimizer import adamw
from rewardloop_trainer.learning.settings import LoraSettings
from rewardloop_trainer.reward.lora import with_lora
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.step import optimizer_of


def after(steps: int, weight: Tensor, rate: float, gradient: float = 1.0) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = adamw([{"params": [parameter], "weight_decay": 0.0}], learning_rate=rate)
    for _ in range(steps):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return parameter.detach()


def test_updates_below_the_distance_of_bfloat16_values_are_made_in_the_mean() -> None:
    # At 1 the distance to the next bfloat16 value is 2 ** -8 below and 2 ** -7 above; an update is 1e-5.
    for start in (1.0, -1.0):
        weight = torch.full((200_000,), start, dtype=torch.bfloat16)
        moved = after(20, weight, 1e-5).double().mean().item() - start
        assert abs(moved + 20e-5) < 2e-5
    plain = nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    nearest = torch.optim.AdamW([plain], lr=1e-5, weight_decay=0.0)
    for _ in range(20):
        plain.grad = torch.ones_like(plain)
        nearest.step()
    assert torch.equal(plain.detach(), torch.ones(10, dtype=torch.bfloat16))


def test_a_step_of_bfloat16_weights_is_that_of_torch_s_adamw_up_to_rounding() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(50, 8).bfloat16(), [torch.randn(50, 8) for _ in range(5)]
    half, whole = nn.Parameter(start.clone()), nn.Parameter(start.float())
    ours = adamw([{"params": [half], "weight_decay": 0.1, "lr": 0.05}])
    theirs = torch.optim.AdamW([whole], lr=0.05, weight_decay=0.1)
    for slope in slopes:
        half.grad, whole.grad = slope.bfloat16(), slope.bfloat16().float()
        ours.step()
        theirs.step()
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.02)


def test_the_rounding_is_the_same_in_every_process_and_after_a_restart() -> None:
    weight = torch.randn(1_000).bfloat16()
    torch.manual_seed(1)
    first = after(3, weight, 1e-3)
    torch.manual_seed(2)
    assert torch.equal(after(3, weight, 1e-3), first)


def test_float32_weights_have_torch_s_own_adamw() -> None:
    assert type(adamw([{"params": [nn.Parameter(torch.ones(2))]}])) is torch.optim.AdamW


@pytest.mark.parametrize(("is_adapted", "rate"), [(False, 5e-5), (True, 1e-4)])
def test_the_trunk_of_a_reward_model_learns_at_the_rate_of_its_method(*, is_adapted: bool, rate: float) -> None:
    model = RewardModel(AutoModel.from_config(config("bert", layers=1)), 2, "mean")
    if is_adapted:
        with_lora(model, LoraSettings.model_validate({}))
    rates = {
        id(p): group["lr"] for group in optimizer_of(model, RewardTraining()).param_groups for p in group["params"]
    }
    learned = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert {learned[name] for name in learned if name.startswith("trunk.")} == {rate}
    assert learned["heads.weight"] == 1e-3
