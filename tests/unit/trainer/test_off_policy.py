"""Off-policy values and position bias, against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewardloop.v1 import feedback_pb2, policy_pb2
from rewardloop_trainer.data.preferences import NoSupport
from rewardloop_trainer.evaluation.off_policy import (
    LEAST_CLUSTERS,
    Judgement,
    judgements,
    off_policy_value,
    position_bias,
)

WORTH = np.array([0.2, 0.5, 0.9])
MU, PI = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
TRUE_VALUE = float(PI @ WORTH)


def simulated(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Thumbs for three possible answers: the answers, labels, weights and prompts, four judgements a prompt."""
    chance = np.random.default_rng(seed)
    said = chance.choice(3, size=count, p=MU)
    labels = (chance.random(count) < WORTH[said]).astype(float)
    return said, labels, PI[said] / MU[said], [f"prompt {i // 4}" for i in range(count)]


def test_every_estimate_covers_the_true_value_as_often_as_its_interval_says() -> None:
    model = WORTH + np.array([0.1, -0.1, 0.05])  # a model that is wrong by a little
    covered = {"ips": 0, "snips": 0, "doubly_robust": 0}
    widths = dict.fromkeys(covered, 0.0)
    runs = 400
    for seed in range(runs):
        said, labels, weights, prompts = simulated(400, seed)
        found = off_policy_value(
            labels, weights, prompts, model_values=model[said], policy_values=np.full(len(said), PI @ model)
        )
        for name in covered:
            value = getattr(found, name)
            covered[name] += value.lower <= TRUE_VALUE <= value.upper
            widths[name] += (value.upper - value.lower) / runs
    for name, count in covered.items():
        assert 0.91 <= count / runs <= 0.98, (name, count / runs)
    assert widths["doubly_robust"] < widths["ips"]


def test_the_logging_policy_itself_has_its_plain_mean() -> None:
    _, labels, _, prompts = simulated(200, 0)
    found = off_policy_value(labels, np.ones(200), prompts)
    assert found.snips == found.logged
    # An estimate that may leave [0, 1] has bounds that may, too.
    assert (found.ips.estimate, found.ips.lower) == (found.logged.estimate, found.logged.lower)
    assert found.ips.upper <= found.logged.upper
    assert found.effective_samples == pytest.approx(200)
    assert found.doubly_robust is None


def test_truncation_is_stated_and_pulls_towards_the_logged_value() -> None:
    _, labels, weights, prompts = simulated(4_000, 1)
    whole, cut = (off_policy_value(labels, weights, prompts, most_weight=most) for most in (math.inf, 2.0))
    assert whole.truncated_share == 0.0
    assert cut.truncated_share == pytest.approx(0.1, abs=0.02)
    assert cut.snips.estimate < whole.snips.estimate


def test_too_few_clusters_give_no_interval() -> None:
    with pytest.raises(ValueError, match=f"needs {LEAST_CLUSTERS} independent clusters of judgements, not 2"):
        off_policy_value(np.ones(50), np.ones(50), ["a"] * 25 + ["b"] * 25)


def test_exposure_undoes_a_rule_that_shows_good_pairs_more_often() -> None:
    """Of three sampled answers a pair is shown; the rule prefers the pair of the best two."""
    chance = np.random.default_rng(3)
    pairs, probability = [(0, 1), (0, 2), (1, 2)], [0.1, 0.1, 0.8]
    values, exposures, prompts = [], [], []
    for prompt in range(6_000):
        pair = chance.choice(3, p=probability)
        event = shown_event(3, pairs[pair], random_share=0.3, set_probability=probability[pair])
        first, second = pairs[pair]
        wins = chance.random() < WORTH[first] / (WORTH[first] + WORTH[second])
        event.choice.chosen, event.choice.rejected = (0, 1) if wins else (1, 0)
        for judged in judgements(event):
            if pairs[pair][judged.response] == 2:
                values.append(judged.value)
                exposures.append(judged.exposure)
                prompts.append(str(prompt))
    truth = np.mean([WORTH[2] / (WORTH[2] + WORTH[other]) for other in (0, 1)])
    found = off_policy_value(np.array(values), np.ones(len(values)), prompts, exposures=np.array(exposures))
    assert found.logged.lower <= truth <= found.logged.upper
    assert abs(np.mean(values) - truth) > found.logged.upper - found.logged.estimate


def shown_event(
    sampled: int, pair: tuple[int, int], *, random_share: float, set_probability: float
) -> feedback_pb2.FeedbackEvent:
    chosen = policy_pb2.Chosen(
        selection=policy_pb2.SELECTION_INFORMATIVE,
        sampled=sampled,
        random_share=random_share,
        set_probability=set_probability,
    )
    shown = feedback_pb2.Shown(chosen=chosen, show_probabilities=[0.5, 0.8], temperature=1.0, top_p=1.0)
    return feedback_pb2.FeedbackEvent(event_id=str(pair), responses=["a", "b"], shown=shown)


def test_a_thumb_of_a_shown_candidate_is_weighed_by_its_own_probability() -> None:
    event = shown_event(5, (0, 1), random_share=0.1, set_probability=0.1)
    event.thumb.response, event.thumb.up = 1, True
    assert list(judgements(event)) == [Judgement(1, 1.0, pytest.approx(2 / 5 / 0.8))]


def test_signals_without_support_say_why() -> None:
    unknown = feedback_pb2.FeedbackEvent(responses=["a", "b"])
    unknown.choice.chosen = 1
    greedy = shown_event(2, (0, 1), random_share=1.0, set_probability=1.0)
    greedy.choice.chosen = 1
    greedy.shown.temperature = 0.0
    best = shown_event(8, (0, 1), random_share=0.0, set_probability=1.0)
    best.choice.chosen = 1
    edit = shown_event(2, (0, 1), random_share=1.0, set_probability=1.0)
    edit.edit.edited_text = "c"
    for event, reason in [(unknown, "not recorded"), (greedy, "greedily"), (best, "best responses"), (edit, "edit")]:
        with pytest.raises(NoSupport, match=reason):
            list(judgements(event))


def choices(people: int, first_wins: float, seed: int) -> list[feedback_pb2.FeedbackEvent]:
    chance = np.random.default_rng(seed)
    found = []
    for i in range(people * 5):
        order = [0, 1] if chance.random() < 0.5 else [1, 0]
        event = feedback_pb2.FeedbackEvent(annotator_id=f"p{i % people}", display_order=order)
        won = order[0] if chance.random() < first_wins else order[1]
        event.choice.chosen, event.choice.rejected = won, 1 - won
        found.append(event)
    return found


def test_position_bias_is_found_where_it_is_and_not_where_it_is_not() -> None:
    biased = [position_bias(choices(60, 0.65, seed)) for seed in range(20)]
    fair = [position_bias(choices(60, 0.5, seed)) for seed in range(20)]
    assert all(found is not None and found.first_wins.lower > 0.5 for found in biased)
    misled = sum(found is None or not found.first_wins.lower <= 0.5 <= found.first_wins.upper for found in fair)
    assert misled <= 4  # of 20 at 5%: P(5 or more) is 0.3%
    assert biased[0] is not None
    assert (biased[0].choices, biased[0].people) == (300, 60)


def test_one_loud_person_does_not_make_a_position_bias() -> None:
    fair = choices(60, 0.5, 1)
    loud = [event for event in choices(1, 1.0, 2) for _ in range(200)]
    for event in loud:
        event.annotator_id = "loud"
    found = position_bias([*fair, *loud])
    assert found is not None
    assert found.first_wins.lower <= 0.5 <= found.first_wins.upper


def test_position_bias_needs_people_and_a_known_order() -> None:
    assert position_bias(choices(LEAST_CLUSTERS - 1, 0.9, 0)) is None
    unknown = choices(60, 0.9, 0)
    for event in unknown:
        del event.display_order[:]
    assert position_bias(unknown) is None
