"""SimPO and ORPO against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rewardloop_trainer.policy.losses.orpo import log_odds, orpo
from rewardloop_trainer.policy.losses.simpo import simpo
from rewardloop_trainer.policy.offline_settings import DpoSettings, OrpoSettings, SimpoSettings
from rewardloop_trainer.policy.pair_objectives import objective_of

# A chosen response of 3 tokens with -9 nats and a rejected one of 8 tokens with -12: -3 and -1.5 nats a token.
POLICY = torch.tensor([[-9.0, -12.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-15.0, -8.0]], dtype=torch.float64)
TOKENS = torch.tensor([[3, 8]])
STRONGEST = torch.tensor([1.0])


def test_simpo_compares_mean_log_probabilities_less_the_margin() -> None:
    # 2 (-3 + 1.5) - 1 = -4; log(1 + exp(4)) = 4.0181499
    assert simpo(POLICY, TOKENS, 2.0, 1.0).item() == pytest.approx(4.0181499, abs=1e-7)
    # Without a margin, equal means give log 2, whatever the lengths.
    assert simpo(torch.tensor([[-6.0, -16.0]]), TOKENS, 2.0, 0.0).item() == pytest.approx(math.log(2))


def test_orpo_is_the_chosen_responses_loss_and_the_odds() -> None:
    # exp(-3) = 0.0497871 and exp(-1.5) = 0.2231302; log odds -3 + 0.0510692 and -1.5 + 0.2524826.
    assert log_odds(POLICY, TOKENS)[0].tolist() == pytest.approx([-2.9489308, -1.2475174], abs=1e-6)
    # 3 + 0.5 log(1 + exp(1.7014134)) = 3 + 0.5 * 1.8689937
    assert orpo(POLICY, TOKENS, 0.5).item() == pytest.approx(3 + 0.5 * math.log1p(math.exp(1.7014134)), abs=1e-6)


def test_odds_of_a_certain_response_are_finite_with_a_finite_gradient() -> None:
    certain = torch.tensor([[0.0, -1.0]], requires_grad=True)
    loss = orpo(certain, torch.tensor([[1, 1]]), 1.0).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_each_objective_has_its_own_reward() -> None:
    of = [objective_of(settings) for settings in (DpoSettings(), SimpoSettings(), OrpoSettings())]
    rewards = [each.rewards(POLICY, REFERENCE, TOKENS)[0].tolist() for each in of]
    assert rewards[0] == pytest.approx([0.6, -0.4])
    assert rewards[1] == pytest.approx([-6.0, -3.0])
    assert rewards[2] == pytest.approx([-2.9489308, -1.2475174], abs=1e-6)


@pytest.mark.parametrize("settings", [SimpoSettings(), OrpoSettings()])
def test_the_reference_plays_no_part(settings: SimpoSettings | OrpoSettings) -> None:
    objective = objective_of(settings)
    with_one, with_another = (objective.losses(POLICY, ref, TOKENS, STRONGEST) for ref in (REFERENCE, 2 * REFERENCE))
    assert torch.equal(with_one, with_another)


@pytest.mark.parametrize(("strength", "expected"), [(0.0, 0.3132617), (0.5, 0.6931472), (1.0, 1.3132617)])
def test_a_strong_preference_asks_dpo_for_a_larger_margin(strength: float, expected: float) -> None:
    # D = 6 + 4 = 10 and beta D = 1; log(1 + exp(-(1 - 2 * strength)))
    settings = DpoSettings(beta=0.1, sft_weight=0.0, margin=2.0)
    found = objective_of(settings).losses(POLICY, REFERENCE, TOKENS, torch.tensor([strength], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_simpo_and_orpo_do_not_depend_on_the_strength() -> None:
    for settings in (SimpoSettings(), OrpoSettings()):
        weak, strong = (objective_of(settings).losses(POLICY, REFERENCE, TOKENS, s) for s in (0 * STRONGEST, STRONGEST))
        assert torch.equal(weak, strong)
