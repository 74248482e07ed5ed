"""Every figure here was worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rewardloop_trainer.policy.losses.advantages import (
    advantages_of,
    group_advantages,
    leave_one_out,
    token_rewards,
    whiten,
)
from rewardloop_trainer.policy.losses.clipped import (
    clipped_share,
    clipped_surrogate,
    clipped_value_loss,
    importance,
    token_mean,
)
from rewardloop_trainer.policy.losses.kl import kl_estimate
from rewardloop_trainer.policy.losses.kto import balanced_weights, kto, reference_point
from rewardloop_trainer.policy.online.kl_control import KlControl

LOG2 = math.log(2)


def test_kl_estimates_of_a_ratio_of_two() -> None:
    logprobs, ref = torch.tensor([[LOG2]]), torch.tensor([[0.0]])
    assert kl_estimate(logprobs, ref, "k1").item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_estimate(logprobs, ref, "k2").item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_estimate(logprobs, ref, "k3").item() == pytest.approx(0.193147, abs=1e-6)  # 1/2 - 1 + log 2


def test_log_ratios_that_can_only_be_broken_stay_finite() -> None:
    far, near, token = torch.tensor([[1000.0, -1000.0]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    assert kl_estimate(far, near, "k3").isfinite().all()
    assert clipped_surrogate(far, near, -torch.ones(1, 2), token, 0.2, 0.2).isfinite().all()
    assert importance(far, near, token, 2.0)[0].tolist() == pytest.approx([2.0, math.exp(-20)])


def test_k1_and_k3_estimate_the_kl_without_bias_and_k2s_gradient_is_the_kls() -> None:
    policy_logits = torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
    policy, ref = torch.log_softmax(policy_logits, 0), torch.log_softmax(torch.tensor([0.1, 0.4, -0.5]), 0)
    kl = (policy.exp() * (policy - ref)).sum()
    share = policy.exp().detach()
    for name in ("k1", "k3"):
        assert (share * kl_estimate(policy, ref, name)).sum().item() == pytest.approx(kl.item(), abs=1e-6)
    (wanted,) = torch.autograd.grad(kl, policy_logits, retain_graph=True)
    (found,) = torch.autograd.grad((share * kl_estimate(policy, ref, "k2")).sum(), policy_logits)
    torch.testing.assert_close(found, wanted)


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_each() -> None:
    is_token = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    kl = torch.tensor([[1.0, 2.0, 9.0], [0.5, 0.0, 1.0], [9.0, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, -1.0, 5.0]), kl, is_token, beta=0.5)
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [-0.25, 0.0, -1.5], [0.0, 0.0, 0.0]]


def test_advantages_by_hand() -> None:
    # gamma 0.5, lambda 0.5. delta_2 = 4 - 2 = 2; delta_1 = 1 + 0.5*2 - 1 = 1; delta_0 = 0 + 0.5*1 - 3 = -2.5.
    # A_2 = 2; A_1 = 1 + 0.25*2 = 1.5; A_0 = -2.5 + 0.25*1.5 = -2.125.
    rewards, values = torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    found = advantages_of(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5)
    assert found.tolist() == [[-2.125, 1.5, 2.0]]


def test_a_gap_carries_the_bootstrap_through_without_discount() -> None:
    # The same three tokens with two others between them.
    rewards = torch.tensor([[0.0, 7.0, 1.0, 7.0, 4.0, 7.0]])
    values = torch.tensor([[3.0, 7.0, 1.0, 7.0, 2.0, 7.0]])
    is_token = torch.tensor([[True, False, True, False, True, False]])
    assert advantages_of(rewards, values, is_token, 0.5, 0.5).tolist() == [[-2.125, 0.0, 1.5, 0.0, 2.0, 0.0]]


def test_with_gamma_and_lambda_1_an_advantage_is_what_is_still_to_come_less_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 1.0]])
    found = advantages_of(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert found.tolist() == [[5.5, 4.75, 2.0]]


def test_whitening_reads_tokens_alone() -> None:
    values = torch.tensor([[1.0, 3.0, 1e6]])
    whitened = whiten(values, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(whitened, torch.tensor([[-1.0, 1.0, 0.0]]))
    assert whiten(torch.tensor([[5.0]]), torch.tensor([[True]])).tolist() == [[0.0]]


def test_group_advantages_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    assert group_advantages(scores, scale=False).tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(  # the sample standard deviation is 1
        group_advantages(scores), torch.tensor([[-0.9999, 0.0, 0.9999], [0.0, 0.0, 0.0]])
    )
    assert leave_one_out(scores).tolist() == [[-1.5, 0.0, 1.5], [0.0, 0.0, 0.0]]  # 1 - (2 + 3) / 2


def test_the_surrogate_is_clipped_only_where_that_makes_it_worse() -> None:
    old = torch.zeros(1, 4)
    logprobs = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log()
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    loss = clipped_surrogate(logprobs, old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2, 0.2)
    torch.testing.assert_close(loss, torch.tensor([[-2.4, 3.0, -1.0, 1.6]]))
    share = clipped_share(logprobs, old, torch.ones(1, 4, dtype=torch.bool), 0.2, 0.6)
    assert share.item() == 0.5


def test_the_gradient_at_ratio_1_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages, is_token = torch.tensor([[3.0, -1.0]]), torch.tensor([[True, True]])
    clipped_surrogate(logprobs, logprobs.detach(), advantages, is_token, 0.2, 0.2).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-3.0, 1.0]]


def test_the_value_loss_takes_the_worse_of_the_clipped_and_the_free_value() -> None:
    # v 2, old 1, R 0, clip 0.2: max(4, 1.44) / 2. v 0, old 1, R 0: max(0, 0.64) / 2.
    values, old = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    loss = clipped_value_loss(values, old, torch.zeros(1, 2), torch.tensor([[True, True]]), 0.2)
    torch.testing.assert_close(loss, torch.tensor([[2.0, 0.32]]))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    logprobs = torch.tensor([[0.0, 3.0, 0.0]], requires_grad=True)
    weights = importance(logprobs, torch.tensor([[LOG2, 0.0, 0.0]]), torch.tensor([[True, True, False]]), most=2.0)
    assert weights.tolist() == [[0.5, 2.0, 0.0]]
    assert not weights.requires_grad


def test_a_token_weighs_the_same_in_any_micro_batch() -> None:
    values, is_token = torch.tensor([[1.0, 2.0], [6.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    whole = token_mean(values, is_token)
    parts = [token_mean(values[i : i + 1], is_token[i : i + 1], tokens=3) for i in range(2)]
    assert whole.item() == pytest.approx(3.0)
    assert sum(part.item() for part in parts) == pytest.approx(3.0)


def test_the_kl_coefficient_steers_towards_its_target() -> None:
    control = KlControl(beta=0.15, target=6.0, horizon=10_000)
    control.update(kl=6.6, sequences=512)  # 10% above: beta grows by 0.1 * 512 / 10,000
    assert control.beta == pytest.approx(0.15 * 1.00512)
    control.update(kl=600.0, sequences=512)  # counts as 20%
    assert control.beta == pytest.approx(0.15 * 1.00512 * 1.01024)
    control.update(kl=0.0, sequences=512)
    assert control.beta == pytest.approx(0.15 * 1.00512 * 1.01024 * 0.98976)
    few = KlControl(beta=0.1, target=6.0, horizon=100.0)
    few.update(kl=600.0, sequences=512)
    assert few.beta == pytest.approx(0.2)  # 1 + 0.2 * 5.12 is above 2
    few.update(kl=0.0, sequences=10_000)
    assert few.beta == pytest.approx(0.1)
    fixed = KlControl(beta=0.1)
    fixed.update(kl=100.0, sequences=512)
    assert fixed.beta == 0.1


def test_kto_by_hand() -> None:
    # z = mean(1, 3, -1) = 1; wanted r 1: 1 - s(0) = 0.5. Unwanted r 1 + 2 log 3, beta 0.5: 1 - s(-log 3) = 0.75.
    z = reference_point(torch.tensor([1.0, 3.0, -1.0]))
    assert z.item() == pytest.approx(1.0)
    losses = kto(torch.tensor([1.0, 1.0 + 2 * math.log(3)]), torch.tensor([True, False]), z, beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([0.5, 0.75]))
    assert reference_point(torch.tensor([-2.0])).item() == 0.0


def test_kto_weights_balance_the_two_kinds() -> None:
    weights = balanced_weights(torch.tensor([True, True, True, False]))
    assert weights.tolist() == [1.0, 1.0, 1.0, 3.0]
    assert balanced_weights(torch.tensor([True, True])).tolist() == [1.0, 1.0]
    counted = balanced_weights(torch.tensor([True, False, False]), torch.tensor([0.5, 1.0, 3.0]))
    assert counted.tolist() == [8.0, 1.0, 1.0]
