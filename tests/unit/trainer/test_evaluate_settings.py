"""A threshold that the evaluated kind of model does not have is an error, and is not passed over."""

from __future__ import annotations

from typing import Any

import pytest

from rewardloop_trainer.commands.evaluate.settings import EvaluateSettings

_POLICY = {"model": "policy", "version": "2", "against": "1", "data": ["d.jsonl"], "out": "o"}
_REWARD = {**_POLICY, "model": "reward"}
_CHAT = {"endpoint": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**_POLICY, "most_overfit": 0.1, "train": "t.jsonl"}, "most_overfit: a threshold of reward models"),
        (
            {**_POLICY, "most_over_optimisation": 0.1, "answers": "a.jsonl", "judges": ["1"]},
            "most_over_optimisation: a threshold of reward models",
        ),
        ({**_REWARD, "least_judged_win_rate": 0.4, "judge": _CHAT}, "least_judged_win_rate needs what it is about"),
        ({**_REWARD, "refusal_margin": 0.1}, "refusal_margin needs what it is about"),
    ],
)
def test_a_threshold_of_the_other_kind_of_model_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateSettings.model_validate(given)


def test_thresholds_of_its_own_kind_are_taken() -> None:
    of_policy = EvaluateSettings.model_validate({**_POLICY, "least_judged_win_rate": 0.4, "judge": _CHAT})
    assert of_policy.least_judged_win_rate == 0.4
    assert EvaluateSettings.model_validate({**_REWARD, "most_overfit": 0.1, "train": "t.jsonl"}).most_overfit == 0.1
