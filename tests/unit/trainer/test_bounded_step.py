"""The gradients of a step in parts: those of the whole step, in the memory that the budget allows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.reward_bases import config, encoder_for
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import AutoModel

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record
from rewardloop_trainer.learning.bounded_step import backward_in_parts
from rewardloop_trainer.learning.live_bytes import LiveBytes
from rewardloop_trainer.learning.model_load import prepare
from rewardloop_trainer.learning.world import World
from rewardloop_trainer.reward.examples import encode_records
from rewardloop_trainer.reward.model import RewardModel
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.train import RewardRun

KINDS = ("bert", "llama")
PROMPT = (Turn("user", "why " * 20),)
# One ranking is longer than the small budgets.
RECORDS: list[Record] = [
    *(Pair(PROMPT, "good " * (10 + i % 5), "bad " * (12 - i % 4), event_id=f"p{i}") for i in range(8)),
    RankedList(PROMPT, tuple("ok " * (i + 3) for i in range(8)), event_id="r"),
    Labelled(PROMPT, "fine " * 9, 1.0, event_id="l"),
]


def gradients(kind: str, token_budget: int, *, recompute: bool = False) -> tuple[Tensor, float, int]:
    """The gradients of one step as one vector, its loss, and the most bytes of tensors that were alive."""
    torch.manual_seed(0)
    model = RewardModel(AutoModel.from_config(config(kind, layers=4)), 2, "last" if kind == "llama" else "mean")
    model.eval()
    changes = {"micro_batch_tokens": token_budget, "sequences_per_step": 100, "gradient_checkpointing": recompute}
    settings = RewardTraining.model_validate(changes)
    encoder = encoder_for(kind)
    prepare(model, model.trunk, settings)
    run = RewardRun(model, encoder, encode_records(encoder, RECORDS), [], settings, None, print, lambda: False, print)
    with LiveBytes() as live:
        loss, _ = run._gradients(run.plan[0])
    found = [p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None]
    assert model.threshold.grad is not None
    return torch.cat(found), loss.item(), live.peak


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_step_and_memory_follows_the_budget(kind: str) -> None:
    whole, loss, most = gradients(kind, 100_000)
    peaks = [most]
    for budget in (1_500, 600, 200):
        found, own_loss, peak = gradients(kind, budget)
        assert (found - whole).norm() < 1e-5 * whole.norm()
        assert own_loss == pytest.approx(loss, rel=1e-5)
        peaks.append(peak)
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.25 * peaks[0]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_recomputed_give_the_same_gradients_in_less_memory(kind: str) -> None:
    kept, loss, most = gradients(kind, 100_000)
    found, own_loss, peak = gradients(kind, 100_000, recompute=True)
    assert torch.equal(found, kept)
    assert own_loss == loss
    assert peak < 0.65 * most


def test_a_second_pass_draws_the_dropout_of_the_first() -> None:
    layer, seen = nn.Linear(3, 2), dict[tuple[int, ...], list[Tensor]]()
    inputs = torch.randn(6, 3)

    def forward(rows: Sequence[int]) -> Tensor:
        output: Tensor = layer(dropout(inputs[list(rows)], 0.5))
        seen.setdefault(tuple(rows), []).append(output.detach())
        return output

    state = torch.get_rng_state()
    backward_in_parts([4, 4, 4, 4, 4, 4], forward, lambda outputs: outputs.square().sum(), 8, World())
    after = torch.get_rng_state()
    passes = sorted(len(outputs) for outputs in seen.values())
    assert passes == [1, 2, 2]
    assert all(torch.equal(outputs[0], outputs[-1]) for outputs in seen.values())
    # The numbers that follow are those of one pass.
    torch.set_rng_state(state)
    for _ in range(3):
        dropout(inputs[:2], 0.5)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("in_step", [False, True])
def test_the_loss_may_relate_any_sequences(in_step: bool) -> None:
    layer, inputs = nn.Linear(3, 2), torch.randn(5, 3)

    def loss_of(outputs: Tensor) -> Tensor:
        return torch.logsumexp(outputs, 0).sum()

    loss_of(layer(inputs)).backward()
    assert layer.weight.grad is not None
    whole = layer.weight.grad.clone()
    layer.zero_grad()
    loss, outputs = backward_in_parts(
        [1, 2, 3, 4, 5], lambda rows: layer(inputs[list(rows)]), loss_of, 1, World(), in_step=in_step
    )
    torch.testing.assert_close(layer.weight.grad, whole)
    torch.testing.assert_close(outputs, layer(inputs).detach())
    assert loss.item() == pytest.approx(loss_of(layer(inputs)).item())
