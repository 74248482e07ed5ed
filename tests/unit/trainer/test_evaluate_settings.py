"""A threshold that nothing reads in a command is an error, and is not passed over."""

from __future__ import annotations

from typing import Any

import pytest

from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings
from rewardloop_trainer.commands.policy_train_settings import PolicyTrainSettings
from rewardloop_trainer.commands.reward_train_settings import RewardTrainSettings

_POLICY = {"model": "policy", "version": "2", "against": "1", "data": ["d.jsonl"], "out": "o"}
_REWARD = {**_POLICY, "model": "reward"}
_CHAT = {"endpoint": "http://127.0.0.1:1/v1", "model": "m"}


_RATER = {"phrases": ["bad"]}
# Each threshold with what it is about.
_OF_REWARD_MODELS: dict[str, dict[str, Any]] = {
    "slice_margin": {"slice_margin": 0.1},
    "benchmark_margin": {"benchmark_margin": 0.1, "benchmarks": ["b.jsonl"]},
    "least_over_length": {"least_over_length": 0.05},
    "most_calibration_error": {"most_calibration_error": 0.1},
    "most_overfit": {"most_overfit": 0.1, "train": "t.jsonl"},
    "most_over_optimisation": {"most_over_optimisation": 0.1, "answers": "a.jsonl", "judges": ["1"]},
}
_OF_POLICIES: dict[str, dict[str, Any]] = {
    "least_win_rate": {"least_win_rate": 0.4, "judges": ["1"]},
    "least_judged_win_rate": {"least_judged_win_rate": 0.4, "judge": _CHAT},
    "refusal_margin": {"refusal_margin": 0.1},
    "task_margin": {"task_margin": 0.1, "tasks": ["t"]},
    "safety_margin": {"safety_margin": 0.1, "suites": ["rewardloop"], "rater": _RATER},
    "most_red_team": {"most_red_team": 0.0, "regression": "r.jsonl", "rater": _RATER},
}


@pytest.mark.parametrize("name", _OF_REWARD_MODELS)
def test_a_threshold_of_reward_models_is_refused_for_a_policy(name: str) -> None:
    EvaluateSettings.model_validate({**_REWARD, **_OF_REWARD_MODELS[name]})
    with pytest.raises(ValueError, match=f"{name}.*: measured of reward models alone, and model is policy"):
        EvaluateSettings.model_validate({**_POLICY, **_OF_REWARD_MODELS[name]})


@pytest.mark.parametrize("name", _OF_POLICIES)
def test_a_threshold_of_policies_is_refused_for_a_reward_model(name: str) -> None:
    EvaluateSettings.model_validate({**_POLICY, **_OF_POLICIES[name]})
    with pytest.raises(ValueError, match=f"{name}.*: measured of policies alone, and model is harmless"):
        EvaluateSettings.model_validate({**_REWARD, "model": "harmless", **_OF_POLICIES[name]})


def test_every_threshold_is_of_one_kind_of_model() -> None:
    """They are the settings from the first margin to what is done with the figures."""
    names = list(EvaluateSettings.model_fields)
    thresholds = names[names.index("slice_margin") : names.index("record")]
    assert set(thresholds) == _OF_REWARD_MODELS.keys() | _OF_POLICIES.keys()


@pytest.mark.parametrize(("model", "given"), [("policy", {"answers": "a.jsonl"}), ("reward", {"tasks": ["t"]})])
def test_what_is_measured_of_the_other_kind_is_refused(model: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"alone, and model is {model}"):
        EvaluateSettings.model_validate({**_POLICY, "model": model, **given})


@pytest.mark.parametrize(
    "given",
    [{"judge": {"api_key": "k"}}, {"rater": {"judge": {"api_key": "k"}}}, {"paraphrase": {"api_key_file": "k"}}],
)
def test_a_key_that_stays_in_the_environment_measures_nothing(given: dict[str, Any]) -> None:
    EvaluateSettings.model_validate({**_REWARD, **given})


def test_a_chat_model_of_a_rater_measures_a_policy() -> None:
    with pytest.raises(ValueError, match="rater: measured of policies alone"):
        EvaluateSettings.model_validate({**_REWARD, "rater": {"judge": _CHAT}})


def test_judges_of_a_reward_model_need_something_to_judge() -> None:
    with pytest.raises(ValueError, match="they need answers"):
        EvaluateSettings.model_validate({**_REWARD, "judges": ["2"]})


def test_a_share_of_attacks_needs_the_suite_that_it_is_of() -> None:
    with pytest.raises(ValueError, match="most_red_team is a threshold for the suite regression"):
        EvaluateSettings.model_validate({**_POLICY, "most_red_team": 0.1})


_POLICY_TRAIN = {"base": "b", "prompts": "p.jsonl", "out": "o"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"live_test": {"least_people": 5}}, "live_test.least_people: read in rounds"),
        ({"gate": {"earlier_version": True}}, "gate.earlier_version: read in rounds"),
        ({"gate": {"anchor": "3"}}, "gate.anchor names a version"),
    ],
)
def test_a_threshold_that_training_a_policy_by_hand_does_not_read_is_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyTrainSettings.model_validate({**_POLICY_TRAIN, **given})
    PolicyTrainSettings.model_validate({**_POLICY_TRAIN, "gate": {"alpha": 0.01}})


@pytest.mark.parametrize(
    "given",
    [
        {"gate_margin": 0.0},
        {"gate_tolerance": 0.1},
        {"checks": {"slice": 0.1}},
        {"checks": {"benchmark": 0.1, "benchmarks": ["b"]}},
    ],
)
def test_a_threshold_of_the_comparison_with_the_start_is_refused_for_a_new_reward_model(given: dict[str, Any]) -> None:
    started = {"data": "d.jsonl", "out": "o", "store": "s", **given}
    RewardTrainSettings.model_validate({**started, "version": "1"})
    with pytest.raises(ValueError, match="a comparison with the version where training starts"):
        RewardTrainSettings.model_validate({**started, "base": "b"})


def test_thresholds_of_its_own_kind_are_taken() -> None:
    of_policy = EvaluateSettings.model_validate({**_POLICY, "least_judged_win_rate": 0.4, "judge": _CHAT})
    assert of_policy.least_judged_win_rate == 0.4
    assert EvaluateSettings.model_validate({**_REWARD, "most_overfit": 0.1, "train": "t.jsonl"}).most_overfit == 0.1
