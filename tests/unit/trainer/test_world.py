"""Sums of gradients over processes: what is in memory at once, and gradients of unusual layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rewardloop_trainer.learning import world as processes
from rewardloop_trainer.learning.live_bytes import LiveBytes
from rewardloop_trainer.learning.world import BUCKETS_SENT, World

BUCKET = 1_000


class Arrived:
    def wait(self) -> None:
        """Nothing is on its way."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One of two processes. The other one has a gradient of every parameter, with the same values or zeros."""

    def all_reduce(values: Tensor, *_: object, async_op: bool = False) -> Any:
        if async_op:
            values.mul_(2)
        else:  # how many have each gradient
            values.fill_(1)
        return Arrived()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(processes, "BUCKET_VALUES", BUCKET)
    found = World()
    found.size = 2
    return found


def test_the_copies_of_many_small_gradients_take_no_more_than_the_buckets_that_are_sent(world: World) -> None:
    learning = [nn.Parameter(torch.zeros(BUCKET // 2)) for _ in range(12)]
    for place, parameter in enumerate(learning):
        parameter.grad = torch.full_like(parameter, place)
    with LiveBytes() as live:
        world.sum_gradients(learning)
    assert [p.grad[0].item() for p in learning if p.grad is not None] == [2 * place for place in range(12)]
    whether_there_is_one = 4 * len(learning)
    assert live.peak <= BUCKETS_SENT * 4 * BUCKET + whether_there_is_one


def test_a_gradient_that_only_another_process_has_is_made_for_a_parameter_of_any_layout(world: World) -> None:
    parameter = nn.Parameter(torch.ones(3, 4).T)
    world.sum_gradients([parameter])
    assert parameter.grad is not None
    assert parameter.grad.equal(torch.zeros(4, 3))
