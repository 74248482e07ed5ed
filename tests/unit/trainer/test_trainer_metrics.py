"""What the trainer counts, and that callers cannot make it count without bound."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.signals import choice

from rewardloop.formats.text import Turn
from rewardloop.formats.vocabulary import SIGNAL_KINDS, SOURCES
from rewardloop.v1 import feedback_pb2
from rewardloop_trainer.data.preferences import Labelled, Pair, Prompt
from rewardloop_trainer.evaluation.evidence import Readings, evidence_of
from rewardloop_trainer.evaluation.live_comparison import LiveTest
from rewardloop_trainer.evaluation.policy_gate import Answered, Fluency, judge_policy
from rewardloop_trainer.evaluation.reward_gate import Contest, RewardGateRules, judge_reward
from rewardloop_trainer.learning.gradients import NonFiniteGradients, clip
from rewardloop_trainer.metrics import LABEL_VALUES, TrainerMetrics
from rewardloop_trainer.policy.settings import LiveTestSettings, PolicyGateLimits
from rewardloop_trainer.vocabulary import (
    LIVE_TEST_FIGURES,
    POLICY_GATE_FIGURES,
    REWARD_GATE_FIGURES,
    ROUND_OUTCOMES,
    RULES,
    Outcome,
    Reason,
    RoundEnd,
    rule_of,
)

LIMITS = PolicyGateLimits.model_validate({"least_prompts": 2})


@pytest.fixture
def metrics() -> TrainerMetrics:
    return TrainerMetrics()


def value(metrics: TrainerMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"rewardloop_trainer_{name}", labels)
    assert found is not None, name
    return found


def signal(number: int, annotator: str = "", **tags: str) -> Any:
    event = choice(number)
    event.annotator_id = annotator
    event.tags.update(tags)
    return event


def test_slices_beyond_the_bound_are_counted_together(metrics: TrainerMetrics) -> None:
    metrics.archived(signal(i, tenant=f"t{i}") for i in range(500))
    metrics.archived([signal(0, tenant="t0"), signal(1, tenant="x" * 10_000)])
    samples = [s for f in metrics.registry.collect() for s in f.samples if s.name.endswith("slice_signals_total")]
    assert len(samples) == 51
    assert sum(sample.value for sample in samples) == 502
    assert value(metrics, "slice_signals_total", slice="tenant=t0") == 2
    assert value(metrics, "slice_signals_total", slice="other") == 451
    assert value(metrics, "signals_total", kind="choice") == 502


def test_annotators_are_counted_and_never_named(metrics: TrainerMetrics) -> None:
    metrics.archived([signal(0, "ann"), signal(1, "ann"), signal(2, "ann"), signal(3, "bob"), signal(4)])
    assert value(metrics, "annotators") == 2
    assert value(metrics, "busiest_annotator_ratio") == 0.75
    labels = {label for f in metrics.registry.collect() for s in f.samples for label in s.labels.values()}
    assert not labels & {"ann", "bob"}


def test_every_closed_label_is_announced_with_its_values_alone() -> None:
    announced = defaultdict(lambda: defaultdict(set))
    for family in TrainerMetrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        for sample in family.samples:
            for label, each in sample.labels.items():
                announced[name][label].add(each)
    values = {(name, label): values for name, labels in LABEL_VALUES.items() for label, values in labels.items()}
    assert {pair for pair in values if values[pair] is None} == {
        ("rewardloop_trainer_slice_signals_total", "slice"),
        ("rewardloop_trainer_unread_signals", "reason"),
    }
    for (name, label), each in values.items():
        assert each is None or announced[name][label] == set(each), (name, label)
    # Beside them: buckets, and the labels of the process itself.
    others = {(name, label) for name, labels in announced.items() for label in labels if (name, label) not in values}
    assert {pair for pair in others if pair[0].startswith("rewardloop_trainer") and pair[1] != "le"} == set()


def test_the_outcomes_that_end_a_round_are_among_those_that_are_counted() -> None:
    assert set(get_args(RoundEnd)) == set(ROUND_OUTCOMES) - {"failed"}
    assert set(get_args(Outcome)) < set(get_args(RoundEnd))


def test_every_kind_and_source_of_signal_is_counted_under_its_announced_value(metrics: TrainerMetrics) -> None:
    for number, kind in enumerate(SIGNAL_KINDS):
        event = feedback_pb2.FeedbackEvent(event_id=str(number))
        getattr(event, kind).SetInParent()
        metrics.archived([event])
        assert value(metrics, "signals_total", kind=kind) == 1
    for source in SOURCES:
        before = value(metrics, "source_signals_total", source=source)
        event = choice(0)
        event.source = feedback_pb2.Source.Value(f"SOURCE_{source.upper()}")
        metrics.archived([event])
        assert value(metrics, "source_signals_total", source=source) == before + 1


def asked(number: int) -> Prompt:
    return (Turn("user", f"Hi {number}"),)


def test_the_gates_measure_the_figures_that_are_announced() -> None:
    said = evidence_of(
        [
            *(Pair(asked(i), "a", "b", exposure=1.0) for i in range(9)),
            *(Labelled(asked(i), "a", i % 2) for i in range(9)),
        ]
    )
    shown = Readings(np.linspace(1, 2, 9), np.linspace(1, 2, 9))
    best = Contest(said, shown, shown)
    reward = judge_reward(said, shown, shown, 0.0, RewardGateRules(least_prompts=2), best)
    assert set(reward.figures) == set(REWARD_GATE_FIGURES)
    answered = [[Answered("one two three four", 4, False, 1.0)]]
    policy = judge_policy(
        answered * 2, answered * 2, LIMITS, judged=[1.0] * 2, earlier=[1.0] * 2, fluency=Fluency(1.0, 1.0)
    )
    assert set(policy.figures) == set(POLICY_GATE_FIGURES)
    live = LiveTest("2", "1", LiveTestSettings.model_validate({}))
    assert set(live.figures) == set(LIVE_TEST_FIGURES)


def test_a_refusal_counts_each_broken_rule_once(metrics: TrainerMetrics) -> None:
    metrics.refused("policy", [Reason("kl", "KL 9"), Reason("win_rate", "0.4"), Reason("win_rate", "0.3"), "unnamed"])
    counts = {rule: value(metrics, "refusals_total", model="policy", rule=rule) for rule in RULES}
    assert {rule: count for rule, count in counts.items() if count} == {"kl": 1, "win_rate": 1, "other": 1}


def test_the_policy_gates_reasons_name_their_rules() -> None:
    said = Answered("a a a a a a a a", 80, True, -1.0, log_ratio=100.0)
    before = Answered("one two three four", 4, False, 1.0)
    verdict = judge_policy([[said]] * 4, [[before]] * 4, LIMITS)
    assert {rule_of(reason) for reason in verdict.reasons} >= {
        "win_rate",
        "kl",
        "length",
        "endless_answers",
        "distinct",
    }
    assert all(isinstance(reason, str) and reason for reason in verdict.reasons)


def test_a_step_that_is_not_measured_leaves_no_mark(metrics: TrainerMetrics) -> None:
    metrics.stepped("reward", 0.5, math.nan, math.nan)
    assert value(metrics, "steps_total", model="reward") == 1
    assert value(metrics, "step_seconds_count", model="reward") == 0
    metrics.stepped("reward", 0.4, 2.0, 0.1)
    assert value(metrics, "gradient_norm", model="reward") == 2.0
    assert value(metrics, "step_seconds_count", model="reward") == 1


def test_gradients_are_clipped_by_their_norm_and_refused_when_they_are_no_numbers() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip([weight], 1.0) == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, abs=1e-4)
    weight.grad = torch.tensor([math.nan, 0.0])
    with pytest.raises(NonFiniteGradients, match="not finite"):
        clip([weight], 1.0)


def test_weights_of_sources_and_the_number_of_muted_ones_are_shown(metrics: TrainerMetrics) -> None:
    assert math.isnan(value(metrics, "source_weight", source="llm_judge"))
    metrics.show_sources({"llm_judge": 0.4, "llm_judge/some model": 0.1, "implicit": 0.2}, 1)
    assert value(metrics, "source_weight", source="llm_judge") == 0.4
    assert value(metrics, "source_weight", source="implicit") == 0.2
    assert value(metrics, "muted_sources") == 1
