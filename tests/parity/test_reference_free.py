"""SimPO's and ORPO's losses and gradients against TRL's, on the same log-probabilities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardloop_trainer.policy.losses.orpo import orpo
from rewardloop_trainer.policy.losses.simpo import simpo

pytest.importorskip("trl", minversion="1.16", reason="TRL is in the extra named parity")
NEAR = 1e-5
TOKENS = torch.tensor([[3, 8], [5, 2], [7, 7], [1, 4]])


def logprobs() -> Tensor:
    drawn = -torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    return (3 * drawn * TOKENS).requires_grad_()


def trainer_like(**settings: Any) -> Any:
    """What TRL's loss functions read of their trainer."""
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, label_smoothing=0.0, **settings)


def assert_same(ours: Tensor, our_input: Tensor, theirs: Tensor, their_input: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=NEAR, rtol=0)
    for loss in (ours, theirs):
        loss.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(our_input.grad, their_input.grad, atol=NEAR, rtol=0)


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (0.5, 0.0), (10.0, 3.0)])
def test_simpo_is_that_of_trl(beta: float, margin: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    mine, yours = logprobs(), logprobs()
    mean = yours / TOKENS
    trainer = trainer_like(beta=beta, simpo_gamma=margin, loss_type="simpo")
    theirs = CPOTrainer.cpo_loss(trainer, mean[:, 0], mean[:, 1])[0]
    assert_same(simpo(mine, TOKENS, beta, margin), mine, theirs, yours)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_the_odds_of_orpo_are_those_of_trl(weight: float) -> None:
    """TRL's other term is over prompt and response, and the paper's, which is here, over the response."""
    from trl.experimental.orpo import ORPOTrainer

    mine, yours = logprobs(), logprobs()
    mean = yours / TOKENS
    theirs = -ORPOTrainer.odds_ratio_loss(trainer_like(beta=weight), mean[:, 0], mean[:, 1])[0]
    assert_same(orpo(mine, TOKENS, weight) + mine[:, 0] / TOKENS[:, 0], mine, theirs, yours)
