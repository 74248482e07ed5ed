"""A policy that finds an error of its reward model runs away in a few steps, and is held within a bound of the KL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hackable_worlds import PROMPTS, demo_like, learn, scored, starter
from support.learning_runs import learning_seed

from rewardloop.formats.vocabulary import ONLINE_ALGORITHMS, OnlineAlgorithm
from rewardloop_trainer.learning.checkpoint import TrainingStopped
from rewardloop_trainer.learning.run_control import NO_CONTROL, RunControl
from rewardloop_trainer.learning.run_rows import StepDone
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import OnlineOutcome, train_online

# So small that the first steps go beyond it.
TIGHT = {"steps": 4, "prompts": 8, "minibatch": 16, "learning_rate": 1e-2, "beta": 0.0, "kl_target": None}


@pytest.mark.learning
def test_a_bound_holds_a_run_that_would_go_far_beyond_it_and_people_like_the_result_better() -> None:
    seed = learning_seed()
    fast = {"beta": 0.0, "kl_target": None, "learning_rate": 3e-3}
    free, held = learn(seed, demo_like(**fast)), learn(seed, demo_like(**fast, max_kl=6.0))
    assert free.kl > 12.0
    assert free.outcome.taken_back is None
    assert held.kl < 7.0
    assert held.outcome.taken_back is not None
    assert held.outcome.kl is not None
    assert held.outcome.kl <= 6.0
    assert held.win_rate > free.win_rate


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(
    algorithm: OnlineAlgorithm, control: RunControl[StepDone, OnlineOutcome] = NO_CONTROL, **changed: object
) -> tuple[OnlineOutcome, list[torch.Tensor]]:
    """Train with tight settings. Returns the outcome and the weights before and after each step."""
    settings = demo_like(**{**TIGHT, **changed})
    model, encoder = starter(learning_seed())
    passed = [flat(model)]

    def on_step(done: StepDone) -> None:
        passed.append(flat(model))
        control.on_step(done)

    task = OnlineTask(algorithm_of(algorithm, settings), settings, PROMPTS)
    watched = replace(control, on_step=on_step)
    return train_online(model, encoder, task, scored, watched, seed=learning_seed()), passed


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ONLINE_ALGORITHMS)
def test_every_algorithm_ends_with_the_weights_before_the_step_that_went_too_far(algorithm: OnlineAlgorithm) -> None:
    saved: list[OnlineOutcome] = []
    held, passed = run(algorithm, RunControl(save=saved.append), max_kl=0.05)
    assert saved == [held]
    assert held.taken_back is not None
    last = held.taken_back.step
    assert len(held.history) == last
    assert held.taken_back.kl > held.taken_back.limit == 0.05
    assert held.kl == held.history[-1].figures["kl"] <= 0.05
    assert torch.equal(flat(held.model), passed[last - 1])
    assert not torch.equal(flat(held.model), passed[last])


@pytest.mark.learning
def test_a_run_that_goes_on_from_a_checkpoint_takes_back_the_same_step(tmp_path: Path) -> None:
    changed = {"steps": 6, "max_kl": 0.3, "checkpoint_every_steps": 1}
    whole, _ = run("grpo", **changed)
    taken_back = whole.taken_back
    assert taken_back is not None
    done: list[int] = []
    control = RunControl(tmp_path, lambda step: done.append(step.step), lambda: taken_back.step in done)
    with pytest.raises(TrainingStopped):
        run("grpo", control, **changed)
    again, _ = run("grpo", RunControl(tmp_path), **changed)
    assert again.taken_back == taken_back
    assert torch.equal(flat(whole.model), flat(again.model))
