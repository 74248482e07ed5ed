"""Signals that weigh nothing, such as those of people who are not heard, count nowhere as evidence."""

from __future__ import annotations

from dataclasses import replace

from rewardloop.formats.text import Turn
from rewardloop_trainer.assessment.reward_models.agreement import Choices, human_ceiling, slices_of
from rewardloop_trainer.data.preferences import Labelled, Pair, RankedList, Record, TiedPair, weighing
from rewardloop_trainer.data.weights.influence import cap_influence
from rewardloop_trainer.evaluation.evidence import evidence_of
from rewardloop_trainer.evaluation.reward_gate import evidence_figures
from rewardloop_trainer.policy.examples import pairs_from_thumbs
from rewardloop_trainer.reward.settings import RewardTraining


def asked(number: int) -> tuple[Turn, ...]:
    return (Turn("user", f"q{number}"),)


HEARD = [Pair(asked(i), "yes", "no", annotator="a") for i in range(3)]
MUTED: list[Record] = [
    Pair(asked(8), "no", "yes", weight=0.0, annotator="b", tags={"lang": "de"}),
    TiedPair(asked(9), "a", "b", weight=0.0),
    RankedList(asked(10), ("a", "b", "c"), weight=0.0),
    Labelled(asked(11), "a", 1.0, weight=0.0),
]


def test_weighing_leaves_out_what_weighs_nothing() -> None:
    assert weighing([*HEARD, *MUTED]) == HEARD


def test_evidence_is_of_what_weighs_something() -> None:
    found, heard = evidence_of([*HEARD, *MUTED]), evidence_of(HEARD)
    assert evidence_figures(found, 50) == evidence_figures(heard, 50)
    assert found.keys == heard.keys
    choices = Choices.of(found)
    assert len(choices) == 3
    assert "lang=de" not in slices_of(choices)


def test_a_kind_of_signal_that_weighs_nothing_is_no_evidence() -> None:
    grades = [Labelled(asked(i), "a", 1.0) for i in range(4)]
    assert not evidence_of(grades, RewardTraining.model_validate({"pointwise_weight": 0.0})).graded


def test_people_who_are_not_heard_say_nothing_of_how_far_people_agree() -> None:
    twice = [replace(HEARD[0], event_id="1"), replace(HEARD[0], annotator="c", event_id="2")]
    against = Pair(HEARD[0].prompt, "no", "yes", weight=0.0, annotator="d", event_id="3")
    ceiling = human_ceiling(Choices.of(evidence_of([*twice, against])))
    assert ceiling is not None
    assert (ceiling.pairwise.mean, ceiling.judgements) == (1.0, 2)


def test_a_thumb_meets_no_thumb_that_weighs_nothing() -> None:
    prompt = asked(0)
    wanted = [Labelled(prompt, text, 1.0) for text in ("a", "b")]
    unwanted = [Labelled(prompt, "c", 0.0, weight=0.0), Labelled(prompt, "d", 0.0)]
    assert {pair.chosen for pair in pairs_from_thumbs([*wanted, *unwanted])} == {"a", "b"}


def test_people_who_are_not_heard_leave_the_others_their_shares() -> None:
    """Two people may each have all; as two of four, each could have half at most."""
    heard = [replace(HEARD[0], annotator="a", weight=3.0), replace(HEARD[1], annotator="b")]
    muted = [replace(HEARD[2], annotator=name, weight=0.0) for name in ("c", "d")]
    assert cap_influence([*heard, *muted], 0.1) == [*heard, *muted]
