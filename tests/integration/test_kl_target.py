"""A target of the KL holds a run near it, within the run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from support.learning_runs import learning_seed
from support.policy_versions import quick_policy

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.online.algorithms import OnlineTask, algorithm_of
from rewardloop_trainer.policy.online.train import train_online
from rewardloop_trainer.policy.online_settings import OnlineSettings
from rewardloop_trainer.policy.rewards import Reward

PROMPTS: list[Prompt] = [(Turn("user", f"q{i}"),) for i in range(8)]
TARGET = 2.0
RUN: dict[str, Any] = {
    "steps": 60,
    "prompts": 8,
    "responses": 8,
    "max_new_tokens": 8,
    "minibatch": 64,
    "learning_rate": 1e-3,
    "beta": 0.2,
    "max_update_kl": 100.0,
    "rewards": {"missing_end_penalty": 0.0},
}


def count_a(_: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Reward | None]]:
    return [[Reward(float(text.count("a"))) if text.strip() else None for text in group] for group in texts]


def kl_at_the_end(**changed: Any) -> tuple[float, float]:
    """Mean KL of the last ten steps, in nats per response, and the last beta."""
    settings = OnlineSettings.model_validate({**RUN, **changed})
    model, encoder = quick_policy(learning_seed())
    task = OnlineTask(algorithm_of("grpo", settings), settings, PROMPTS)
    history = train_online(model, encoder, task, count_a, seed=learning_seed()).history
    return statistics.mean(done.figures["kl"] for done in history[-10:]), history[-1].figures["beta"]


@pytest.mark.learning
def test_a_target_holds_the_kl_of_a_run_that_would_go_far_beyond_it() -> None:
    far, fixed = kl_at_the_end()
    near, steered = kl_at_the_end(kl_target=TARGET)
    late, _ = kl_at_the_end(kl_target=TARGET, kl_horizon=10_000.0)  # longer than the run
    assert fixed == 0.2
    assert far > 4 * TARGET
    assert late > 4 * TARGET
    assert near < 2.5 * TARGET
    assert steered > 1.5 * fixed
