"""From calibrated scores to rewards."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from rewardloop_trainer.data.completions import Completion
from rewardloop_trainer.policy.online.shaping import Shaping
from rewardloop_trainer.policy.online_settings import RewardShaping
from rewardloop_trainer.policy.rewards import Reward
from rewardloop_trainer.policy.rollouts import Rollout


def said(*finishes: str) -> list[Rollout]:
    return [Rollout("text", Completion((2, 3), 1), (-0.5,), "length" if f == "length" else "stop") for f in finishes]


def shape(settings: RewardShaping, *groups: tuple[Sequence[Rollout], Sequence[Reward | None]]) -> list[list[float]]:
    return Shaping(settings).shape([g for g, _ in groups], [r for _, r in groups])


def test_heads_that_disagree_cost_reward() -> None:
    rewards = [Reward(1.0, 0.5), Reward(0.8, 0.0)]
    assert shape(RewardShaping(caution=1.0), (said("stop", "stop"), rewards)) == [[0.5, 0.8]]
    assert shape(RewardShaping(), (said("stop", "stop"), rewards)) == [[1.0, 0.8]]


def test_answer_without_an_end_is_penalised_and_an_empty_one_has_the_score_of_the_settings() -> None:
    settings = RewardShaping(missing_end_penalty=2.0, empty_score=-5.0)
    assert shape(settings, (said("length", "stop"), [Reward(1.0), None])) == [[-1.0, -5.0]]


def test_normalised_rewards_have_mean_0_and_deviation_1_of_all_that_was_scored() -> None:
    settings = RewardShaping(normalise=True, missing_end_penalty=0.0)
    values = [1.0, 2.0, 4.0, 9.0]
    found = shape(settings, (said(*["stop"] * 4), [Reward(v, version="7") for v in values]))[0]
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    assert found == pytest.approx([(v - mean) / deviation for v in values])


def test_statistics_begin_anew_with_another_reward_version() -> None:
    shaping = Shaping(RewardShaping(normalise=True))
    shaping.shape([said("stop", "stop")], [[Reward(100.0, version="1"), Reward(300.0, version="1")]])
    assert shaping.moments.mean == 200.0
    found = shaping.shape([said("stop", "stop")], [[Reward(-1.0, version="2"), Reward(1.0, version="2")]])
    assert found == [[-1.0, 1.0]]
    assert shaping.moments.count == 2


def test_statistics_go_on_from_a_checkpoint() -> None:
    settings = RewardShaping(normalise=True)
    whole, first = Shaping(settings), Shaping(settings)
    steps = [[[Reward(v, version="1") for v in values]] for values in ((1.0, 2.0), (5.0, 0.0), (3.0, 3.0))]
    for step in steps[:2]:
        whole.shape([said("stop", "stop")], step)
        first.shape([said("stop", "stop")], step)
    resumed = Shaping(settings)
    resumed.restore(first.moments.version, first.numbers())
    last = [said("stop", "stop")]
    assert resumed.shape(last, steps[2]) == whole.shape(last, steps[2])
