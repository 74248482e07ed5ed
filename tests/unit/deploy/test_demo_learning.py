"""The demo has settings for each algorithm, and knows what a demo must show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewardloop.formats.vocabulary import ALGORITHMS, OFFLINE_ALGORITHMS, Algorithm
from rewardloop.process.settings import parse
from rewardloop_demo.learning import thumb_share, train_args
from rewardloop_demo.record import DemoRecord, RoundRecord
from rewardloop_demo.settings import DemoSettings
from rewardloop_demo.verdict import not_shown
from rewardloop_trainer.settings import TrainSettings


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_demo_has_settings_for_each_algorithm(algorithm: Algorithm) -> None:
    assert parse(DemoSettings, ["--algorithm", algorithm], "demo").algorithm == algorithm
    args = train_args(algorithm, signals_per_round=600, seed=3)
    settings = parse(TrainSettings, args, "train")
    assert (settings.policy.algorithm, settings.reward_min_signals, settings.seed) == (algorithm, 600, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_of_a_million_parameters_learns_faster_than_a_large_one_would(algorithm: Algorithm) -> None:
    def rate(settings: TrainSettings) -> float:
        policy = settings.policy
        learning = policy.kto if algorithm == "kto" else policy if algorithm in OFFLINE_ALGORITHMS else policy.online
        return learning.rate_for(10**6, are_adapters=False)

    demo = parse(TrainSettings, train_args(algorithm, signals_per_round=600, seed=3), "train")
    assert rate(demo) > 10 * rate(TrainSettings())


def test_the_demo_keeps_as_many_signals_as_a_round_from_the_base_may_learn() -> None:
    settings = parse(TrainSettings, train_args("grpo", signals_per_round=600, seed=3), "train")
    assert settings.newest >= settings.reward.fresh_newest + settings.reward.fresh_older
    assert settings.policy.gate.judged_by == "own"


def test_users_give_kto_at_least_twenty_steps_of_thumbs_in_each_round() -> None:
    args = train_args("kto", signals_per_round=600, seed=3)
    settings = parse(TrainSettings, args, "train")
    thumbs = settings.policy_min_signals * thumb_share("kto") * (1 - settings.heldout_share)
    assert thumbs / settings.policy.kto.batch_thumbs >= 20


START = RoundRecord(0, 60.0, 0, "1", 0.5, "1", 0.5, 0.5, 0.5)
END = RoundRecord(
    6, 300.0, 3_000, "4", 0.7, "3", win_rate=0.7, win_low=0.64, win_high=0.75, reward_swaps=2, policy_swaps=2
)


def _demo(last: RoundRecord) -> DemoRecord:
    return DemoRecord(0, (START, last), 0.5, 0.8, 200, 300, {"choice": 3_000}, 300.0)


def test_a_demo_whose_models_learned_has_shown_everything() -> None:
    assert not_shown(_demo(END)) == []


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (replace(END, reward_swaps=0), "no new reward version was swapped in"),
        (replace(END, policy_swaps=0), "no new policy version was swapped in"),
        (replace(END, reward_accuracy=0.5), "the last reward model is no better than the starter"),
        (
            replace(END, reward_change=-0.05, reward_change_low=-0.08, reward_change_high=-0.02),
            "reward version 4 is worse than the one before it, by more than noise",
        ),
        (replace(END, win_low=0.5), "the last policy is not shown to be better than the starter"),
    ],
)
def test_what_a_demo_has_not_shown_is_named(last: RoundRecord, sentence: str) -> None:
    assert not_shown(_demo(last)) == [sentence]


def test_a_demo_whose_gates_refused_all_but_one_version_of_each_has_shown_everything() -> None:
    assert not_shown(_demo(replace(END, reward_swaps=1, policy_swaps=1))) == []
