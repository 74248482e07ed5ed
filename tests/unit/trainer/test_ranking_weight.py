"""A ranking weighs the same beside a choice wherever signals are weighed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rewardloop.formats.text import Encoded
from rewardloop.v1 import common_pb2, feedback_pb2
from rewardloop_trainer.annotators.votes import votes_of
from rewardloop_trainer.data.preferences import Record, comparisons_in, from_events
from rewardloop_trainer.data.weights.influence import cap_influence
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.reward_gate import judge_reward
from rewardloop_trainer.policy.examples import Examples
from rewardloop_trainer.reward import losses
from rewardloop_trainer.reward.examples import Example, Kind
from rewardloop_trainer.reward.linear_start.compare import state_what_was_said
from rewardloop_trainer.reward.settings import RewardTraining
from rewardloop_trainer.reward.step import step_loss

_EIGHT = tuple("abcdefgh")
_KINDS: tuple[Kind, ...] = ("ranking", "pair")
_SETTINGS = RewardTraining(bootstrap="none", centring=0.0)


def choice(name: str, prompt: str, person: str) -> feedback_pb2.FeedbackEvent:
    """The first of eight answers is preferred to the second."""
    return feedback_pb2.FeedbackEvent(
        event_id=name,
        prompt=common_pb2.Prompt(text=prompt),
        responses=_EIGHT,
        annotator_id=person,
        choice=feedback_pb2.Choice(chosen=0, rejected=1),
    )


def ranking(name: str, prompt: str, source: feedback_pb2.Source, order: Sequence[int]) -> feedback_pb2.FeedbackEvent:
    made = choice(name, prompt, "")
    made.ranking.order.extend(order)
    made.source = source
    return made


def records() -> tuple[Record, ...]:
    """A ranking of eight by one person, and a choice by another."""
    ranked = ranking("r", "one", feedback_pb2.SOURCE_HUMAN, range(8))
    ranked.annotator_id = "p1"
    return from_events([ranked, choice("c", "two", "p2")]).records


def test_the_loss_is_the_mean_of_choice_and_ranking_by_what_they_count() -> None:
    examples = [
        Example(kind, tuple(Encoded([i], None, False) for i in range(count)), record.weight, "k")
        for record, kind, count in zip(records(), _KINDS, (8, 2), strict=True)
    ]
    logits = torch.linspace(1.0, -1.0, 10, dtype=torch.float64).unsqueeze(1)
    of_ranking = losses.plackett_luce(logits[:8].unsqueeze(0), torch.ones(1, 8, dtype=torch.bool)).item()
    of_choice = losses.bradley_terry(logits[8:9], logits[9:]).item()
    counted = comparisons_in(8)
    expected = (counted * of_ranking + of_choice) / (counted + 1)
    assert step_loss(logits, torch.zeros(1), examples, _SETTINGS).item() == pytest.approx(expected, rel=1e-6)

    said, _ = state_what_was_said(examples, torch.randn(10, 3), logits.float(), _SETTINGS)
    assert said.weight[:7].sum().item() == pytest.approx(counted, rel=1e-6)
    assert said.weight[7:].tolist() == [[1.0]]


def test_votes_influence_pairs_of_policies_and_evidence_have_the_same_weight() -> None:
    counted = comparisons_in(8)
    said = records()
    votes, places = votes_of(said)
    assert votes.weight[places == 0].sum() == pytest.approx(counted)
    assert votes.weight[places == 1].tolist() == [1.0]
    evidence = evidence_of(said).comparisons.weights
    assert (evidence[:28].sum(), evidence[28]) == (pytest.approx(counted), 1.0)
    learned = Examples.of(said)
    assert sum(pair.weight for pair in learned.pairs[:28]) == pytest.approx(counted)
    others = [*from_events([choice(f"o{i}", "three", f"q{i}") for i in range(60)]).records]
    capped = cap_influence([*said, *others], 0.04)
    assert capped[0].weight == pytest.approx(0.04 * sum(record.weight for record in capped))
    assert capped[0].weight < counted
    assert capped[1].weight == 1.0


def test_inferred_rankings_of_eight_do_not_outvote_people_in_the_gate() -> None:
    """To each of 200 prompts a person prefers one of two answers, and a ranking that was inferred says the opposite."""
    events = []
    for i in range(200):
        events.append(choice(f"c{i}", f"question {i}", f"p{i}"))
        events.append(ranking(f"r{i}", f"question {i}", feedback_pb2.SOURCE_IMPLICIT, range(7, -1, -1)))
    evidence = evidence_of(from_events(events).records)
    agrees = np.array([0.5 if pair.chosen < pair.rejected else -0.5 for pair in evidence.pairs])
    with_people, with_rankings = (Readings(sign * agrees, np.zeros(0)) for sign in (1, -1))
    assert judge_reward(evidence, with_people, with_rankings, parity=0.0).passed
    outcome = judge_reward(evidence, with_rankings, with_people, parity=0.0)
    assert {reason.rule for reason in outcome.reasons} >= {"likelihood", "accuracy"}
    assert outcome.figures["gate_live_accuracy"] == pytest.approx(1 / 1.5)
