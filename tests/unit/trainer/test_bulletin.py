"""What operators are told of people and of refused candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.annotators.crowd import know_crowd
from rewardloop_trainer.annotators.crowd_file import CrowdVotes
from rewardloop_trainer.annotators.gestures import Gesture
from rewardloop_trainer.annotators.votes import FIRST, SECOND, Votes
from rewardloop_trainer.data.preferences import Pair
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.refused_examples import policy_examples, reward_examples
from rewardloop_trainer.rounds.bulletin.curves import MOST_POINTS, Curves
from rewardloop_trainer.rounds.bulletin.people import agreement_with_others, crowd_message

PROMPT = (Turn("user", "How?"),)


def votes(*said: tuple[int, int, int]) -> Votes:
    """Votes of the people a, b and c: (person, item, choice)."""
    person, item, choice = (np.array(each, dtype=np.int64) for each in zip(*said, strict=True))
    items = tuple((("q",), f"x{i}", f"y{i}") for i in range(max(item) + 1))
    return Votes(("a", "b", "c"), items, person, item, choice, np.ones(len(said)), ((),) * len(said))


def gesture(person: str, number: int, at_s: float) -> Gesture:
    return Gesture(
        f"{person}/{number}", person, "human", "", int(at_s * 1000), None, None, None, "", 10, number, number, (), ()
    )


def test_agreement_counts_the_last_votes_of_others_on_the_same_pairs() -> None:
    one = ((0, 0, FIRST), (1, 0, FIRST), (2, 0, SECOND))
    other = ((0, 1, FIRST), (1, 1, SECOND))
    alone = ((1, 0, SECOND), (2, 2, FIRST))
    found = agreement_with_others(votes(*one, *other, *alone))
    assert found == {"a": (0.0, 3), "b": (pytest.approx(1 / 3), 3), "c": (0.5, 2)}


def test_person_has_pace_without_pauses_and_the_caller_apart() -> None:
    said = votes((0, 0, FIRST), (1, 0, FIRST))
    gestures = [gesture("shop\x1fa", i, at) for i, at in enumerate((0, 10, 22, 5_000, 5_008))]
    crowd = know_crowd(CrowdVotes(said, np.full(2, np.nan), ("choice",) * 2, ("k1", "k2")), gestures)
    (person,) = crowd_message(crowd, said, gestures).people
    assert (person.caller, person.annotator_id, person.signals, person.pace_s) == ("shop", "a", 5, 10.0)
    assert not person.HasField("agreement")


def test_people_whose_signals_came_in_batches_have_no_pace() -> None:
    said = votes((0, 0, FIRST), (1, 0, FIRST))
    at_once = [gesture("a", i, at) for i, at in enumerate((0, 0, 0.001, 0.4, 0.4, 0.401))]
    timed = [replace(gesture("b", i, 0.0), given_ms=1000 * i) for i in range(3)]
    crowd = know_crowd(CrowdVotes(said, np.full(2, np.nan), ("choice",) * 2, ("k1", "k2")), [*at_once, *timed])
    people = {each.annotator_id: each for each in crowd_message(crowd, said, [*at_once, *timed]).people}
    assert not people["a"].HasField("pace_s")
    assert people["b"].pace_s == 1.0


def test_reward_examples_are_the_choices_on_which_the_candidate_lost_most() -> None:
    pairs = [Pair(PROMPT, f"good {i}", f"poor {i}", event_id=f"shop\x1fe{i}") for i in range(4)]
    evidence = evidence_of([*pairs, Pair(PROMPT, "good 9", "poor 9", weight=0.0, event_id="muted")])
    candidate = Readings(np.array([0.5, -2.0, -1.0, 3.0]), np.zeros(0))
    live = Readings(np.array([0.5, 1.0, 1.0, 1.0]), np.zeros(0))
    found = reward_examples(evidence, candidate, live)
    assert [each.signal for each in found] == ["shop\x1fe1", "shop\x1fe2"]
    assert [side.text for side in found[0].sides] == ["good 1", "poor 1"]
    (note,) = found[0].marks
    assert note == "the candidate scores the preferred answer -2.00 against the other, the live version +1.00"


def test_policy_examples_are_the_prompts_that_the_live_policy_wins() -> None:
    prompts = [(Turn("user", f"q{i}"),) for i in range(3)]
    found = policy_examples(prompts, [("a", 0.1), ("b", None), ("c", 0.9)], [("d", 0.5)] * 3, [0.25, 0.0, 0.75])
    assert [[side.text for side in each.sides] for each in found] == [["b", "d"], ["a", "d"]]
    assert found[0].sides[0].figures == {}


@pytest.mark.parametrize("steps", [1, MOST_POINTS, 10_000])
def test_curve_of_any_length_is_bounded_and_covers_the_round(steps: int) -> None:
    curves = Curves()
    for step in range(1, steps + 1):
        curves.add(step, {"loss": float(step)})
    (loss,) = curves.messages()
    assert len(loss.steps) <= MOST_POINTS
    assert list(loss.steps) == list(loss.values)
    assert loss.steps[-1] > 0.95 * steps
    assert loss.steps[0] <= max(1, 2 * steps / MOST_POINTS)
