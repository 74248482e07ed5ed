"""A contextual bandit learns which answer to choose, and its value is estimated from answers shown at random."""

from __future__ import annotations

import numpy as np
import pytest

from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_trainer.data.logistic import sigmoid
from rewardloop_trainer.evaluation.bandit import (
    Shown,
    ValueModel,
    evaluate_bandit,
    fit_values,
    shown_answers,
    text_features,
)
from rewardloop_trainer.reward.evaluate import Floats

TASTE = np.array([-0.2, 1.5, -1.0, 0.0])


def thumbs(seed: int, taste: Floats, prompts: int = 300, candidates: int = 4) -> list[Shown]:
    """Of the candidates to each prompt one is shown at random and gets a thumb."""
    chance = np.random.default_rng(seed)
    found = []
    for i in range(prompts):
        features = np.column_stack([np.ones(candidates), chance.normal(0, 1, (candidates, 3))])
        chosen = int(chance.integers(candidates))
        liked = chance.random() < sigmoid(features[chosen : chosen + 1] @ taste)[0]
        found.append(Shown(features, chosen, float(liked), 1.0, f"prompt {i}"))
    return found


def true_value(shown: list[Shown], taste: Floats) -> float:
    """What the best choice by the taste itself would be given."""
    return float(np.mean([sigmoid(each.features @ taste).max() for each in shown]))


@pytest.mark.parametrize("epsilon", [0.1, None])
def test_a_bandit_is_found_to_be_better_than_chance_and_no_better_than_the_truth(epsilon: float | None) -> None:
    gains, robust, best = [], [], []
    for seed in range(10):
        shown = thumbs(seed, TASTE)
        found = evaluate_bandit(shown, epsilon=epsilon, seed=seed)
        assert found.doubly_robust is not None
        gains.append(found.doubly_robust.lower > found.logged.estimate)
        robust.append(found.doubly_robust.estimate)
        best.append(true_value(shown, TASTE))
    assert np.mean(gains) >= 0.9
    assert np.mean(best) - 0.12 < np.mean(robust) < np.mean(best) + 0.02


def test_nothing_is_gained_where_features_say_nothing() -> None:
    held = []
    for seed in range(20):
        found = evaluate_bandit(thumbs(seed, np.zeros(4)), epsilon=0.1, seed=seed)
        assert found.doubly_robust is not None
        held.append(found.doubly_robust.lower <= 0.5 <= found.doubly_robust.upper)
    assert np.mean(held) >= 0.8


def test_a_random_choice_is_worth_what_was_logged() -> None:
    found = evaluate_bandit(thumbs(0, TASTE), epsilon=1.0)
    assert found.snips.estimate == pytest.approx(found.logged.estimate)
    assert found.effective_samples == pytest.approx(300)


def test_a_rule_s_probabilities() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    sure = ValueModel(np.array([0.0, 2.0]), 1e-9 * np.eye(2))
    assert sure.greedy(features, 0.3) == pytest.approx([0.1, 0.45, 0.45])
    assert sure.thompson(features, 0)[0] < 0.01
    unsure = ValueModel(np.array([0.0, 0.1]), 4 * np.eye(2))
    assert unsure.thompson(features, 0)[0] == pytest.approx(0.5, abs=0.1)
    assert unsure.thompson(features, 0).sum() == pytest.approx(1)


def test_more_judgements_make_the_posterior_narrower_around_the_truth() -> None:
    wide, narrow = (
        fit_values(
            np.stack([each.features[each.chosen] for each in shown]),
            np.array([each.value for each in shown]),
            np.ones(len(shown)),
        )
        for shown in (thumbs(0, TASTE, 100), thumbs(0, TASTE, 4_000))
    )
    assert np.trace(narrow.covariance) < np.trace(wide.covariance) / 10
    assert np.abs(narrow.mean - TASTE).max() < 0.25


def event(prompt: str, chosen: int, *, is_known: bool = True) -> feedback_pb2.FeedbackEvent:
    made = feedback_pb2.FeedbackEvent(prompt=common_pb2.Prompt(text=prompt), responses=["short", "a longer answer"])
    made.choice.chosen, made.choice.rejected = chosen, 1 - chosen
    if is_known:
        uniform = policy_pb2.SELECTION_UNIFORM
        chosen_by = policy_pb2.Chosen(selection=uniform, sampled=2, random_share=1.0, set_probability=1.0)
        made.shown.CopyFrom(
            feedback_pb2.Shown(chosen=chosen_by, show_probabilities=[1.0, 1.0], temperature=1.0, top_p=1.0)
        )
    return made


def test_choices_of_the_ledger_teach_it() -> None:
    """People like the longer answer, which a bandit over the answers' texts finds."""
    events = [event(f"question {i}", int(i % 10 < 8)) for i in range(120)]
    shown, left_out = shown_answers([*events, event("q", 0, is_known=False)], text_features)
    assert (len(shown), left_out) == (240, {"the propensities were not recorded": 1})
    found = evaluate_bandit(shown, epsilon=0.0)
    assert found.snips.estimate == pytest.approx(0.8)
    assert found.logged.estimate == pytest.approx(0.5)
