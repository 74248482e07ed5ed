"""A reward model's accuracy on pairs that were drawn at random, although people judged pairs that were chosen."""

from __future__ import annotations

import math
from functools import cache
from zlib import crc32

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop.v1 import common_pb2, feedback_pb2, policy_pb2
from rewardloop_trainer.assessment.reward_models.agreement import Choices, strict_margins
from rewardloop_trainer.assessment.reward_models.report import agreement_section, choice_samples
from rewardloop_trainer.clusters import ClusteredMean
from rewardloop_trainer.data.preferences import Pair, from_event, from_events
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.reward_gate import model_figures
from rewardloop_trainer.reports.parts import Samples

_SAMPLED, _RANDOM_SHARE = 6, 0.2
_PAIRS = math.comb(_SAMPLED, 2)
_NO_AUC = ClusteredMean(math.nan, math.inf, 0.0)


def choice(
    name: str, answers: tuple[str, str], *, random_share: float, probability: float
) -> feedback_pb2.FeedbackEvent:
    """A choice of the first of two answers that were shown, out of `_SAMPLED`, with this probability."""
    chosen = policy_pb2.Chosen(sampled=_SAMPLED, random_share=random_share, set_probability=probability)
    return feedback_pb2.FeedbackEvent(
        event_id=name,
        prompt=common_pb2.Prompt(text=f"question {name}"),
        responses=answers,
        choice=feedback_pb2.Choice(chosen=0, rejected=1),
        annotator_id=f"person {crc32(name.encode()) % 50}",
        shown=feedback_pb2.Shown(chosen=chosen, temperature=1.0, top_p=1.0),
    )


@cache
def world(prompts: int, seed: int) -> tuple[list[feedback_pb2.FeedbackEvent], float]:
    """Choices about the pair of which a model is least sure, or in a fifth of the cases about any, and its true
    accuracy on pairs that are drawn at random. An answer's text is the model's score of it."""
    chance = np.random.default_rng(seed)
    worth = chance.normal(0.0, 2.0, (prompts, _SAMPLED))
    scores = worth + chance.normal(0.0, 1.0, (prompts, _SAMPLED))
    one, other = np.triu_indices(_SAMPLED, 1)
    first_wins = 1 / (1 + np.exp(worth[:, other] - worth[:, one]))
    gaps = scores[:, one] - scores[:, other]
    accuracy = float(np.where(gaps > 0, first_wins, 1 - first_wins).mean())
    least_sure = np.abs(gaps).argmin(1)
    shown = np.where(chance.random(prompts) < _RANDOM_SHARE, chance.integers(0, _PAIRS, prompts), least_sure)
    probability = _RANDOM_SHARE / _PAIRS + (1 - _RANDOM_SHARE) * (shown == least_sure)
    each = np.arange(prompts)
    won = chance.random(prompts) < first_wins[each, shown]
    better, worse = (
        scores[each, np.where(won == is_first, one[shown], other[shown])].tolist() for is_first in (True, False)
    )
    events = [
        choice(f"{seed}/{i}", (repr(better[i]), repr(worse[i])), random_share=_RANDOM_SHARE, probability=probability[i])
        for i in each.tolist()
    ]
    return events, accuracy


def test_the_weighed_accuracy_covers_the_truth_where_the_plain_one_is_wrong() -> None:
    truth = world(10_000, 0)[1]
    runs, covered, plain_covered, effective = 150, 0, 0, 0.0
    for seed in range(1, runs + 1):
        evidence = evidence_of(from_events(world(300, seed)[0]).records)
        margins = np.array([float(pair.chosen) - float(pair.rejected) for pair in evidence.pairs])
        choices = Choices.of(evidence)
        plain, random = choices.accuracy(margins), choices.at_random(margins)
        assert random is not None
        assert random.choices == 300
        effective += random.effective / runs
        covered += random.accuracy.lower(0.025) <= truth <= random.accuracy.upper(0.025)
        plain_covered += plain.lower(0.025) <= truth <= plain.upper(0.025)
    assert covered / runs >= 0.9  # 0.95 less nearly three standard errors
    assert plain_covered / runs < 0.02
    assert 50 < effective < 100  # the random fifth, and a little of the others


def test_pairs_that_were_all_drawn_at_random_have_their_plain_accuracy() -> None:
    events = [choice(str(i), (str(i % 3), "1"), random_share=1.0, probability=1 / _PAIRS) for i in range(30)]
    evidence = evidence_of(from_events(events).records)
    margins = np.array([float(pair.chosen) - float(pair.rejected) for pair in evidence.pairs])
    choices = Choices.of(evidence)
    random = choices.at_random(margins)
    assert random is not None
    assert random.accuracy.mean == pytest.approx(choices.accuracy(margins).mean)
    assert random.effective == pytest.approx(len(choices))


def test_weights_and_effective_choices_by_hand() -> None:
    """Exposures 3 and 1 with weights 1 and 2: of 5 parts 3 are right, and 25 / 13 choices tell as much."""
    likely = Pair((Turn("user", "one"),), "a", "b", 1.0, exposure=3.0)
    unlikely = Pair((Turn("user", "two"),), "a", "b", 2.0, exposure=1.0)
    unknown = Pair((Turn("user", "three"),), "a", "b")
    evidence = evidence_of([likely, unlikely, unknown])
    figures = model_figures("candidate", evidence, Readings(np.array([1.0, -1.0, -1.0]), np.zeros(0)))
    assert figures["gate_candidate_random_accuracy"] == pytest.approx(3 / 5)
    assert figures["gate_candidate_random_choices"] == pytest.approx(25 / 13)
    assert figures["gate_candidate_accuracy"] == pytest.approx(1 / 4)


def test_what_was_chosen_to_be_seen_is_no_random_pair() -> None:
    (pair,) = from_event(choice("a", ("x", "y"), random_share=0.1, probability=0.5))
    assert isinstance(pair, Pair)
    assert pair.exposure == pytest.approx(1 / _PAIRS / 0.5)
    best = choice("b", ("x", "y"), random_share=0.0, probability=1.0)
    task = choice("c", ("x", "y"), random_share=1.0, probability=1 / _PAIRS)
    task.task.probability = 0.3
    drawn = feedback_pb2.FeedbackEvent.FromString(task.SerializeToString())
    drawn.task.is_uniform = True
    unknown = choice("d", ("x", "y"), random_share=0.1, probability=0.5)
    unknown.ClearField("shown")
    found = [record.exposure for event in (best, task, unknown, drawn) for record in from_event(event)]  # type: ignore[union-attr]
    assert found == [None, None, None, 1.0]


def test_the_report_shows_both_accuracies_and_says_if_nothing_is_known() -> None:
    evidence = evidence_of(from_events(world(200, 1)[0]).records)
    margins = np.array([float(pair.chosen) - float(pair.rejected) for pair in evidence.pairs])
    readings = Readings(margins, np.zeros(0))
    choices, own = Choices.of(evidence), strict_margins(evidence, readings)
    _, figures = agreement_section(choices, {"7": own}, None, _NO_AUC)
    assert figures["accuracy_of_random_pairs"] > figures["accuracy"]
    assert figures["accuracy_of_random_pairs_lower"] < figures["accuracy_of_random_pairs_upper"]
    assert 0 < figures["random_pairs"] < 200
    unknown = Choices.of(evidence_of([Pair((Turn("user", str(i)),), "a", "b") for i in range(9)]))
    section, figures = agreement_section(unknown, {"7": np.ones(9)}, None, _NO_AUC)
    assert "random_pairs" not in figures
    assert "No choice says with which probability" in str(section.parts)


def test_samples_show_first_where_models_differ_though_one_counts_characters() -> None:
    pairs = tuple(Pair((Turn("user", f"q{i}"),), "x" * (100 + i), "y") for i in range(4))
    few = np.ones(4)
    choices = Choices(pairs, few, np.arange(4), np.arange(4))
    reward, longer = np.array([0.2, 0.2, -0.4, 0.2]), np.array([99.0, 100.0, 101.0, 102.0])
    (samples,) = choice_samples(choices, {"reward 1": reward, "the longer answer": longer}).parts
    assert isinstance(samples, Samples)
    figures = [sample.figures["disagreement"] for sample in samples.samples]
    assert "q2" in samples.samples[0].prompt
    assert figures == sorted(figures, reverse=True)
    assert max(figures) < 4
