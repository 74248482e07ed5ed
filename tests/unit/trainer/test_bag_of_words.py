"""The bag-of-words baseline learns which words win, and admits when they say nothing."""

from __future__ import annotations

import math
import random

import pytest

from rewardloop_trainer.assessment.reward_models.bag_of_words import Preference, fit_bag_of_words, words_of


def preferences(count: int, seed: int, *, noise: float) -> list[Preference]:
    """The text with "please" beats the one without, except for a share ``noise`` of them."""
    chance = random.Random(seed)
    found = []
    for i in range(count):
        filler = " ".join(chance.choices(["kettle", "lamp", "desk", "cup"], k=3))
        chosen, rejected = f"{filler} please", f"no {filler}"
        if chance.random() < noise:
            chosen, rejected = rejected, chosen
        found.append(Preference(f"q{i % 40}", chosen, rejected))
    return found


def test_words_and_neighbours_are_read_without_regard_to_case() -> None:
    assert words_of("The lamp, please") == {"the", "lamp", ",", "please", "the lamp", "lamp ,", ", please"}


def test_it_learns_the_word_that_wins() -> None:
    model = fit_bag_of_words(preferences(300, 0, noise=0.1))
    assert model.weights["please"] > 0.5
    assert model.weights["no"] < -0.5
    assert model.accuracy(preferences(200, 1, noise=0.0)) == 1.0


def test_choices_at_random_give_it_little_weight() -> None:
    model = fit_bag_of_words(preferences(300, 0, noise=0.5))
    assert abs(model.weights["please"]) + abs(model.weights["no"]) < 0.3


@pytest.mark.parametrize("learned", [[], [Preference("q", "same", "same")]])
def test_without_anything_to_learn_all_texts_score_alike(learned: list[Preference]) -> None:
    model = fit_bag_of_words(learned)
    assert model.accuracy([Preference("q", "yes", "no")]) == 0.5
    assert math.isnan(model.accuracy([]))
