"""A policy that falls below a floor of its mixture is refused, and one that keeps to it passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewardloop.formats.text import Turn
from rewardloop_client import ModelVersion, ResponseScore, ScoreGroup, ScorePart, ScoreResult, Timings
from rewardloop_trainer.assessment.policies.floor_check import NoFloor, check_floors
from rewardloop_trainer.data.preferences import Prompt
from rewardloop_trainer.policy.check_settings import PolicyChecks
from rewardloop_trainer.policy.rewards import FlooredPart, floored_parts
from rewardloop_trainer.vocabulary import rule_of

FLOOR = -1.0
PROMPTS: list[Prompt] = [(Turn("user", f"question {i}"),) for i in range(60)]
TEXTS = [["one answer", "another one"]] * len(PROMPTS)


def read_of(mean: float, seed: int, answers: float = 0.5) -> Any:
    """Values around a mean; prompts differ by 0.8, and the answers to one of them by ``answers``."""
    chance = np.random.default_rng(seed)

    def read(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[FlooredPart]:
        base = mean + chance.normal(0, 0.8, (len(prompts), 1))
        values = base + chance.normal(0, answers, (len(prompts), 2))
        return [FlooredPart("harmless", FLOOR, values.tolist())]

    return read


def passes(mean: float, margin: float = 0.3) -> float:
    settings = PolicyChecks.model_validate({"floor": margin})
    found = [check_floors(PROMPTS, TEXTS, read_of(mean, seed), settings) for seed in range(400)]
    return sum(check.passed for (check,) in found) / len(found)


def test_a_mean_at_the_margin_below_the_floor_passes_with_the_probability_that_was_asked_for() -> None:
    assert passes(FLOOR - 0.3) <= 0.08
    assert passes(FLOOR - 0.6) == 0
    assert passes(FLOOR) >= 0.75
    assert passes(FLOOR + 0.2) >= 0.99


def test_a_refused_policy_s_worst_answers_are_shown() -> None:
    (check,) = check_floors(PROMPTS, TEXTS, read_of(FLOOR - 1, 0), PolicyChecks.model_validate({"floor": 0.1}))
    assert not check.passed
    assert rule_of(check.reason) == "floor"
    values = [case.figures["harmless"] for case in check.cases]
    assert values == sorted(values)
    assert check.cases[0].sides[0].text in TEXTS[0]


def test_no_value_is_no_pass_and_no_floor_is_an_error() -> None:
    settings = PolicyChecks.model_validate({"floor": 0.1})
    empty = FlooredPart("harmless", FLOOR, [[None, None]] * len(PROMPTS))
    (check,) = check_floors(PROMPTS, TEXTS, lambda prompts, texts: [empty], settings)
    assert not check.passed
    assert math.isnan(check.found.value)
    with pytest.raises(NoFloor, match="has a floor"):
        check_floors(PROMPTS, TEXTS, lambda prompts, texts: [], settings)


class Service:
    """Scores by a mixture: helpful is the length, and harmless has a floor."""

    def score_batch(self, groups: Sequence[ScoreGroup], **about: Any) -> list[ScoreResult]:
        return [self._scored(group) for group in groups]

    def _scored(self, group: ScoreGroup) -> ScoreResult:
        assert group.model == "gold"
        lengths = tuple(float(len(text)) for text in group.responses)
        version: Any = ModelVersion
        parts = (
            ScorePart("helpful", "helpful", None, lengths, lengths, 1.0, None),
            ScorePart("harmless", "harmless", None, tuple(-each for each in lengths), lengths, 0.0, FLOOR),
        )
        scores = tuple(ResponseScore(each, each, (), 0.0, False) for each in lengths)  # type: ignore[arg-type]
        return ScoreResult(scores, version, Timings(0, 0, 0), parts)


def test_the_parts_with_floors_are_read_from_the_service_and_empty_answers_have_no_value() -> None:
    server: Any = Service()
    (part,) = floored_parts(server, PROMPTS[:3], [["a", "bc"], ["", "abc"], ["  "]], model="gold")
    assert (part.name, part.floor) == ("harmless", FLOOR)
    assert part.values == [[-1.0, -2.0], [None, -3.0], [None]]
