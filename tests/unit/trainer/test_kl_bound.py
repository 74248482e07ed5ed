"""The bound on the KL within a run: which weights are kept, and what a run says that ends by it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rewardloop_trainer.policy.online.kl_control import KlBound, KlControl, TakenBack
from rewardloop_trainer.policy.settings import PolicySettings


def policy(weight: float) -> nn.Linear:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, weight)
    nn.init.zeros_(model.bias).requires_grad_(False)
    return model


def moved(model: nn.Linear, weight: float) -> nn.Linear:
    nn.init.constant_(model.weight, weight)
    return model


def test_a_step_beyond_the_bound_gives_way_to_the_newest_weights_within_it() -> None:
    bound, model = KlBound(10.0), policy(0.0)
    assert bound.admits(0.0, model)
    assert bound.admits(9.0, moved(model, 1.0))
    assert not bound.admits(12.0, moved(model, 2.0))
    bound.take_back(model)
    assert model.weight.item() == 1.0
    assert (bound.kl, bound.limit) == (9.0, 10.0)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_keeps_to_no_bound(kl: float) -> None:
    bound, model = KlBound(10.0), policy(1.0)
    assert bound.admits(0.0, model)
    assert not bound.admits(kl, model)


def test_without_a_bound_nothing_is_kept_and_nothing_refused() -> None:
    bound = KlBound(None)
    assert bound.admits(1e9, policy(0.0))
    assert bound.tensors() == {}


def test_a_run_that_begins_beyond_its_bound_may_come_back_and_go_a_quarter_further() -> None:
    bound, model = KlBound(10.0), policy(0.0)
    assert bound.admits(16.0, model)
    assert bound.limit == 20.0
    assert bound.admits(12.0, model)
    assert not bound.admits(21.0, model)


def test_the_kept_weights_and_the_limit_go_on_from_a_checkpoint() -> None:
    before, model = KlBound(10.0), policy(3.0)
    assert before.admits(16.0, model)
    after = KlBound(10.0)
    after.restore({"model.weight": torch.ones(1), **before.tensors()}, before.numbers())
    assert not after.admits(21.0, moved(model, 4.0))
    after.take_back(model)
    assert model.weight.item() == 3.0


def test_what_was_taken_back_is_said_with_its_figures() -> None:
    assert str(TakenBack(7, 10, 25.81, 12.0, 9.96)) == (
        "learning ended early: after step 7 of 10 the KL to the reference was 25.8 nats a response, above "
        "online.max_kl, which allows 12 here; the step was taken back, and the policy is that of 6 steps, at 10.0 nats"
    )


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 24.0),
        ({"online": {"kl_target": 8.0}}, 12.0),
        ({"online": {"kl_target": 30.0}}, 24.0),
        ({"online": {"kl_target": 8.0, "max_kl": 40.0}}, 40.0),
        ({"gate": {"max_anchor_kl": 10.0}}, 8.0),
    ],
)
def test_the_bound_is_that_of_the_settings_or_follows_from_the_target_and_the_gate(
    settings: dict[str, dict[str, float]], most: float
) -> None:
    assert PolicySettings.model_validate({"algorithm": "grpo", **settings}).max_online_kl == pytest.approx(most)


def test_a_bound_below_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_kl .* must not be below online\.kl_target"):
        PolicySettings.model_validate({"algorithm": "grpo", "online": {"kl_target": 8.0, "max_kl": 4.0}})


def test_beta_is_where_it_was_set_when_a_policy_that_was_near_runs_away() -> None:
    """The KL of the demo's run that ran away, step by step, with its 96 responses a step."""
    control = KlControl(beta=0.1, target=8.0, horizon=96.0)
    for kl in (5.94, 5.08, 5.32, 5.83):
        control.update(kl, 96)
        assert control.beta == 0.1
    for kl in (8.27, 10.04, 13.69):
        control.update(kl, 96)
    assert control.beta == pytest.approx(0.1 * (1 + 0.27 / 8) * 1.2 * 1.2)
