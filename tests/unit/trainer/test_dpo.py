"""DPO losses against numbers worked out by hand, and against the optimum known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rewardloop_trainer.policy.losses import dpo
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.offline_settings import PreferenceLoss

LOG_2 = math.log(2)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(loss: str, *, length_normalised: bool = False, sft_weight: float = 0.0) -> float:
    """The loss of a pair with log ratios 6 and -4, of 3 and 8 tokens, whose chosen response has -9 nats."""
    settings = PreferenceLoss.model_validate(
        {"loss": loss, "beta": 0.1, "length_normalised": length_normalised, "sft_weight": sft_weight}
    )
    policy, reference, tokens = tensor(-9, -12), tensor(-15, -8), tensor(3, 8)
    return dpo.pair_losses(policy[None], reference[None], tokens[None], settings).item()


def test_a_pairs_loss_is_of_the_difference_of_its_log_ratios() -> None:
    # D = (-9 + 15) - (-12 + 8) = 10; log(1 + exp(-0.1 * 10)) = 0.3132617; the hinge is max(0, 1 - 1)
    assert pair("sigmoid") == pytest.approx(0.3132617, abs=1e-7)
    assert pair("hinge") == 0.0


def test_per_token_each_log_ratio_is_divided_by_its_own_length() -> None:
    # D = 6 / 3 - (-4) / 8 = 2.5; (2.5 - 5)^2 = 6.25, which is so for IPO always
    assert pair("ipo") == pair("ipo", length_normalised=True) == pytest.approx(6.25)
    assert pair("hinge", length_normalised=True) == pytest.approx(0.75)


def test_the_chosen_responses_own_loss_per_token_is_added() -> None:
    assert pair("hinge", sft_weight=0.5) == pytest.approx(0.5 * 9 / 3)


def test_sigmoid_at_the_reference_is_log_2_and_pulls_by_half_beta() -> None:
    d = tensor(0.0).requires_grad_()
    loss = dpo.sigmoid(d, beta=0.1)
    assert loss.item() == pytest.approx(LOG_2)
    loss.backward()
    assert d.grad is not None
    assert d.grad.item() == pytest.approx(-0.05)


def test_sigmoid_by_hand() -> None:
    # log(1 + exp(-0.1 * 2)) = log(1.8187308) = 0.5981389
    assert dpo.sigmoid(tensor(2), beta=0.1).item() == pytest.approx(0.5981389, abs=1e-7)


def test_label_smoothing_by_hand_and_where_it_stops_pulling() -> None:
    # 0.9 * 0.5981389 + 0.1 * (0.5981389 + 0.2) = 0.6181389
    assert dpo.sigmoid(tensor(2), beta=0.1, label_smoothing=0.1).item() == pytest.approx(0.6181389, abs=1e-7)
    # sigmoid(beta D) = 0.9 at D = log(9) / beta
    d = tensor(math.log(9) / 0.1).requires_grad_()
    dpo.sigmoid(d, beta=0.1, label_smoothing=0.1).backward()
    assert d.grad is not None
    assert d.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_robust_by_hand_and_unbiased_under_flips() -> None:
    # (0.9 * 0.5981389 - 0.1 * 0.7981389) / 0.8 = 0.5731389
    assert dpo.robust(tensor(2), beta=0.1, label_smoothing=0.1).item() == pytest.approx(0.5731389, abs=1e-7)
    d = tensor(-3, -0.5, 0, 4)
    over_flips = 0.8 * dpo.robust(d, 0.3, 0.2) + 0.2 * dpo.robust(-d, 0.3, 0.2)
    torch.testing.assert_close(over_flips, dpo.sigmoid(d, 0.3))


def test_ipo_regresses_to_one_over_two_beta() -> None:
    # 1 / (2 * 0.1) = 5: (2 - 5)^2 = 9
    assert dpo.ipo(tensor(2, 5), beta=0.1).tolist() == pytest.approx([9, 0])
    assert dpo.ipo(tensor(2), beta=0.1, label_smoothing=0.25).item() == pytest.approx(0.75 * 9 + 0.25 * 49)


def test_hinge_is_zero_from_one_over_beta_on() -> None:
    assert dpo.hinge(tensor(2, 10, 20, -10), beta=0.1).tolist() == pytest.approx([0.8, 0, 0, 2])
    assert dpo.hinge(tensor(2), beta=0.1, label_smoothing=0.25).item() == pytest.approx(0.75 * 0.8 + 0.25 * 1.2)


def test_k3_is_zero_at_equality_positive_elsewhere_and_bounded() -> None:
    # exp(1) - 2 = 0.7182818; exp(-1) = 0.3678794
    policy, reference = tensor(0, 1, -1), tensor(0, 0, 0)
    assert kl_estimate(reference, policy, "k3").tolist() == pytest.approx([0, 0.7182818, 0.3678794], abs=1e-7)
    assert math.isfinite(kl_estimate(tensor(0), tensor(1000), "k3").item())


def test_k3_on_samples_of_the_reference_is_the_kl_to_the_policy() -> None:
    reference, policy = tensor(0.5, 0.3, 0.2), tensor(0.25, 0.25, 0.5)
    estimate = (reference * kl_estimate(reference.log(), policy.log(), "k3")).sum()
    torch.testing.assert_close(estimate, (reference * (reference / policy).log()).sum())


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_finds_the_closed_form_optimum(beta: float) -> None:
    """With Bradley-Terry labels of reward r, DPO's optimum is pi* ~ ref exp(r / beta) (Rafailov et al. 2023, eq. 4)."""
    reference, reward = tensor(0.4, 0.3, 0.2, 0.1), tensor(0.0, 1.0, -1.0, 2.0)
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    wins = torch.sigmoid(reward[:, None] - reward[None, :])

    def closure() -> Tensor:
        optimizer.zero_grad()
        ratio = logits.log_softmax(0) - reference.log()
        loss = (wins * dpo.sigmoid(ratio[:, None] - ratio[None, :], beta)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimum = (reference.log() + reward / beta).softmax(0)
    assert 0.5 * (logits.softmax(0) - optimum).abs().sum().item() < 1e-4
