"""Each loss against a number worked out by hand; ln is the natural logarithm."""

import math

import pytest
import torch

from rewardloop_trainer.reward.losses import bradley_terry, centring, plackett_luce, pointwise, tie, weighted_mean

LN = math.log


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(1)


def test_bradley_terry_is_the_negative_log_of_the_choice_probability() -> None:
    # r_c - r_r = ln 3: P(chosen) = 3 / (3 + 1); = 0: P = 1/2; = -ln 4: P = 1/5
    losses = bradley_terry(column(LN(3), 2.0, 0.0), column(0.0, 2.0, LN(4)))
    assert losses.squeeze(1).tolist() == pytest.approx([LN(4 / 3), LN(2), LN(5)], abs=1e-6)


def test_margin_is_inside_the_sigmoid() -> None:
    # ln 6 - ln 2 = ln 3, so a margin of ln 2 turns 6 : 1 into 3 : 1
    assert bradley_terry(column(LN(6)), column(0.0), LN(2)).item() == pytest.approx(LN(4 / 3), abs=1e-6)


def test_bradley_terry_stays_finite_at_large_differences() -> None:
    chosen = column(-2000.0).requires_grad_()
    loss = bradley_terry(chosen, column(0.0))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(2000.0)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-1.0)


def test_heads_have_losses_of_their_own() -> None:
    losses = bradley_terry(torch.tensor([[LN(3), 0.0]]), torch.tensor([[0.0, 0.0]]))
    assert losses.tolist() == [pytest.approx([LN(4 / 3), LN(2)], abs=1e-6)]


def test_tie_costs_log_2_at_equal_logits_and_the_mean_of_both_orders_elsewhere() -> None:
    # d = ln 3: (ln(4/3) + ln 4) / 2
    losses = tie(column(1.0, LN(3)), column(1.0, 0.0))
    assert losses.squeeze(1).tolist() == pytest.approx([LN(2), (LN(4 / 3) + LN(4)) / 2], abs=1e-6)


def test_tie_pulls_logits_together_symmetrically() -> None:
    first, second = column(1.0).requires_grad_(), column(0.0).requires_grad_()
    tie(first, second).sum().backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.item() > 0
    assert first.grad.item() == pytest.approx(-second.grad.item())


def test_plackett_luce_of_three_by_hand() -> None:
    # strengths 3, 2, 1: P = 3/6 * 2/3 * 1/1 = 1/3; two choices were made
    ranked = torch.tensor([[[LN(3)], [LN(2)], [0.0]]])
    loss = plackett_luce(ranked, torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(LN(3) / 2, abs=1e-6)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    chosen, rejected = torch.randn(5, 3), torch.randn(5, 3)
    ranked = torch.stack((chosen, rejected), 1)
    got = plackett_luce(ranked, torch.ones(5, 2, dtype=torch.bool))
    torch.testing.assert_close(got, bradley_terry(chosen, rejected))


def test_padding_of_a_ranking_changes_neither_loss_nor_gradient() -> None:
    short = torch.tensor([[[LN(3)], [LN(2)], [0.0]]]).requires_grad_()
    plackett_luce(short, torch.ones(1, 3, dtype=torch.bool)).sum().backward()  # type: ignore[no-untyped-call]
    padded = torch.cat((short.detach(), torch.tensor([[[500.0], [-500.0]]])), 1).requires_grad_()
    loss = plackett_luce(padded, torch.tensor([[True, True, True, False, False]]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(LN(3) / 2, abs=1e-6)
    assert short.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad[:, :3], short.grad)
    assert padded.grad[:, 3:].abs().max().item() == 0.0


def test_plackett_luce_prefers_the_given_order() -> None:
    is_response = torch.ones(1, 3, dtype=torch.bool)
    best_first = plackett_luce(torch.tensor([[[2.0], [1.0], [0.0]]]), is_response)
    best_last = plackett_luce(torch.tensor([[[0.0], [1.0], [2.0]]]), is_response)
    assert best_first.item() < best_last.item()


def test_pointwise_compares_with_the_threshold() -> None:
    # r - tau = ln 3: P(up) = 3/4
    logits, threshold = column(LN(6), LN(6), LN(6)), torch.tensor([LN(2)])
    losses = pointwise(logits, torch.tensor([1.0, 0.0, 0.5]), threshold)
    expected = [LN(4 / 3), LN(4), (LN(4 / 3) + LN(4)) / 2]
    assert losses.squeeze(1).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_threshold_learns_the_level_of_the_labels() -> None:
    threshold = torch.zeros(1, requires_grad=True)
    # 3 of 4 thumbs up at equal logits 0: P(up) = 3/4 at tau = -ln 3
    optimizer = torch.optim.SGD([threshold], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        pointwise(torch.zeros(4, 1), torch.tensor([1.0, 1.0, 1.0, 0.0]), threshold).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert threshold.item() == pytest.approx(-LN(3), abs=1e-4)


def test_centring_is_the_squared_sum_of_both_logits() -> None:
    assert centring(column(3.0, 1.0), column(1.0, -1.0)).squeeze(1).tolist() == [16.0, 0.0]


def test_centring_around_a_level_is_that_of_the_logits_without_it() -> None:
    level = torch.tensor([7.0])
    assert centring(column(10.0, 8.0), column(8.0, 6.0), level).squeeze(1).tolist() == [16.0, 0.0]


def test_weighted_mean_divides_by_the_weights_not_the_items() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # (1*1 + 0*2 + 3*3 + 2*4) / 6
    assert weighted_mean(losses, torch.tensor([[1.0, 0.0], [3.0, 2.0]])).item() == pytest.approx(3.0)
    assert weighted_mean(losses, torch.tensor([[1.0], [3.0]])).item() == pytest.approx((3 + 3 * 7) / 8)


def test_a_step_without_any_weight_is_zero_and_has_zero_gradient() -> None:
    losses = torch.tensor([[1.0]], requires_grad=True)
    mean = weighted_mean(losses, torch.zeros(1, 1))
    mean.backward()  # type: ignore[no-untyped-call]
    assert mean.item() == 0.0
    assert losses.grad is not None
    assert losses.grad.item() == 0.0
