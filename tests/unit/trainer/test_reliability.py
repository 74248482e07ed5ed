"""How reliable people are is found from their votes, and from nothing that they taught."""

from __future__ import annotations

import numpy as np
import pytest
from support.crowds import votes_of_crowd

from rewardloop_trainer.annotators.dawid_skene import dawid_skene
from rewardloop_trainer.annotators.reliability import ASSUMED, estimate_reliability, truth_log_odds
from rewardloop_trainer.annotators.votes import Votes, make_votes


def test_accuracies_are_recovered_among_spammers_and_liars() -> None:
    accuracies = [0.9] * 8 + [0.75] * 6 + [0.5] * 8 + [0.1] * 2
    for seed in range(3):
        votes, truth = votes_of_crowd(accuracies, 600, 5, seed)
        found = estimate_reliability(votes)
        estimated = np.array([found.of(f"p{i}") for i in range(len(accuracies))])
        assert np.abs(estimated - accuracies).max() < 0.13
        assert np.abs(estimated - accuracies).mean() < 0.04
        right = ((found.truth < 0.5) == np.array(truth)).mean()
        shares = np.bincount(votes.item, votes.choice == 0) / 5
        assert right > ((shares < 0.5) == np.array(truth)).mean() + 0.05  # better than the majority


def test_people_of_few_votes_are_shrunk_towards_the_crowd_as_it_is() -> None:
    honest, _ = votes_of_crowd([0.9] * 20, 300, 4, 1)
    spam, _ = votes_of_crowd([0.9] * 8 + [0.5] * 12, 300, 4, 1)
    assert estimate_reliability(honest).crowd > 0.85
    assert 0.6 < estimate_reliability(spam).crowd < 0.75
    assert estimate_reliability(spam).of("nobody has seen them") == estimate_reliability(spam).crowd


def test_nothing_is_known_of_people_who_never_judge_what_others_judge() -> None:
    votes = make_votes([(f"p{i % 10}", ("q", f"{i}", "z"), i % 2) for i in range(200)])
    found = estimate_reliability(votes)
    assert found.compared == 0
    assert all(abs(person.accuracy - ASSUMED) < 0.01 for person in found.people.values())
    assert all(person.informed == 0 for person in found.people.values())


def alone(accuracies: list[float], each: int, seed: int) -> tuple[Votes, np.ndarray]:  # type: ignore[type-arg]
    """Votes that nobody repeats, and log odds of the truth by a model that is right about them four times in five."""
    chance = np.random.default_rng(seed)
    rows, odds = [], []
    for person, accuracy in enumerate(accuracies):
        for i in range(each):
            truth, is_right = int(chance.integers(0, 2)), chance.random() < accuracy
            rows.append((f"p{person}", ("q", f"{person}", f"{i}"), truth if is_right else 1 - truth))
            says = truth if chance.random() < 0.8 else 1 - truth
            odds.append(np.log(4) * (1 - 2 * says))
    return make_votes(rows), np.array(odds)


def test_a_model_that_did_not_learn_from_them_tells_of_people_whom_nobody_repeats() -> None:
    accuracies = [0.9] * 6 + [0.5] * 6 + [0.1] * 2
    votes, odds = alone(accuracies, 80, 3)
    found = estimate_reliability(votes, odds)
    estimated = np.array([found.of(f"p{i}") for i in range(len(accuracies))])
    assert np.abs(estimated - accuracies).mean() < 0.09
    assert estimated[:6].min() > estimated[6:12].max() > estimated[12:].max()
    assert estimate_reliability(votes, np.zeros(len(votes))).compared == 0


def test_a_persons_own_vote_does_not_vouch_for_them() -> None:
    """Two people vote on each item: a third who votes alone gains nothing by being sure of it."""
    votes, _ = votes_of_crowd([0.9, 0.9], 100, 2, 0)
    rows = [
        (votes.people[p], votes.items[i], c) for p, i, c in zip(votes.person, votes.item, votes.choice, strict=True)
    ]
    rows += [("alone", ("q", f"x{i}", "y"), 0) for i in range(100)]
    found = estimate_reliability(make_votes(rows)).people["alone"]
    assert found.informed == 0
    assert found.deviation > 0.05


def test_an_expert_of_one_field_is_known_in_it() -> None:
    chance = np.random.default_rng(2)
    rows, slices = [], []
    for i in range(400):
        field = "code" if i % 2 else "cooking"
        for person in range(5):
            accuracy = 0.9 if person or field == "code" else 0.5
            rows.append((f"p{person}", ("q", f"{i}", "z"), int(chance.random() > accuracy)))
            slices.append((f"field={field}",))
    found = estimate_reliability(make_votes(rows, None, slices))
    assert found.of("p0", ["field=code"]) - found.of("p0", ["field=cooking"]) > 0.2
    assert found.of("p0", ["field=cooking"]) < found.of("p0") < found.of("p0", ["field=code"])


def test_odds_of_a_vote_become_odds_of_the_truth() -> None:
    assert truth_log_odds(np.array([0.0]), 0.8) == pytest.approx([0.0], abs=1e-9)
    # A vote of 0.68 by people who are right in 0.8: the truth is 0.8.
    assert truth_log_odds(np.log([0.68 / 0.32]), 0.8) == pytest.approx(np.log([4.0]))


def test_dawid_and_skenes_model_finds_the_truth_and_the_matrices() -> None:
    votes, truth = votes_of_crowd([0.9] * 6 + [0.3] * 2, 400, 5, 4)
    found = dawid_skene(votes)
    assert ((found.posterior[:, 1] > 0.5) == np.array(truth)).mean() > 0.97
    accuracy = dict(zip(votes.people, found.accuracy.tolist(), strict=True))
    assert accuracy["p0"] == pytest.approx(0.9, abs=0.06)
    assert accuracy["p7"] == pytest.approx(0.3, abs=0.08)
    np.testing.assert_allclose(found.confusion.sum(2), 1, atol=1e-6)


def test_every_item_of_dawid_and_skenes_model_needs_a_vote() -> None:
    with pytest.raises(ValueError, match="every item needs a vote"):
        dawid_skene(make_votes([]))
