"""The weight of a source is measured by how often it agrees with people about the same pairs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import SOURCE_WEIGHTS, Pair, Record, SourceName
from rewardloop_trainer.data.weights.source_weights import measure_sources, source_figures, weigh_sources

FIGURES = ("weight", "weight_lower", "weight_upper", "agreement", "compared")


def judged(pair: int, source: SourceName, is_right: bool, event: str = "") -> Pair:
    better, worse = f"better {pair}", f"worse {pair}"
    chosen, rejected = (better, worse) if is_right else (worse, better)
    weight = SOURCE_WEIGHTS[source]
    return Pair((Turn("user", f"q{pair}"),), chosen, rejected, weight, event or f"{source}/{pair}", source=source)


def simulated(pairs: int, right: dict[SourceName, float], people: int = 2, seed: int = 0) -> list[Record]:
    """Judgements by people who are right in four of five cases, and by sources that are right as often as given."""
    chance = random.Random(seed)
    found: list[Record] = []
    for i in range(pairs):
        found += [judged(i, "human", chance.random() < 0.8, f"person {person}/{i}") for person in range(people)]
        found += [judged(i, source, chance.random() < share) for source, share in right.items()]
    return found


def test_a_source_weighs_what_is_left_of_the_preference_in_its_judgements() -> None:
    found = measure_sources(simulated(20_000, {"llm_judge": 0.8, "implicit": 0.65}))
    assert found["llm_judge"].weight == pytest.approx(1.0, abs=0.05)
    assert found["implicit"].weight == pytest.approx(0.3 / 0.6, abs=0.05)
    assert found["llm_judge"].agreement == pytest.approx(0.8 * 0.8 + 0.2 * 0.2, abs=0.02)


def test_a_source_that_judges_at_random_weighs_next_to_nothing() -> None:
    assert measure_sources(simulated(20_000, {"llm_judge": 0.5}))["llm_judge"].weight < 0.05
    assert measure_sources(simulated(20_000, {"llm_judge": 0.2}))["llm_judge"].weight == 0.0


def test_few_shared_pairs_change_little_and_none_change_nothing() -> None:
    few = measure_sources([judged(0, "human", True), judged(0, "implicit", True), judged(0, "llm_judge", False)])
    assert few["implicit"].weight == pytest.approx(0.5, abs=0.06)
    assert few["llm_judge"].weight == pytest.approx(1.0, abs=0.06)
    assert measure_sources([judged(0, "human", True), judged(1, "llm_judge", True)]) == {}


def test_records_get_the_measured_weight_in_place_of_the_assumed_one() -> None:
    records = simulated(4_000, {"implicit": 0.5})
    measured = measure_sources(records)
    weighed = weigh_sources(records, measured)
    assert {r.weight for r in weighed if r.source == "human"} == {1.0}
    assert [r.weight for r in weighed if r.source == "implicit"] == pytest.approx([measured["implicit"].weight] * 4_000)
    assert set(source_figures(measured)) == {f"source_implicit_{n}" for n in FIGURES}


def test_what_a_person_has_taken_back_measures_no_judge() -> None:
    said: list[Record] = []
    for i in range(200):
        said += [replace(judged(i, "human", False, f"earlier/{i}"), weight=0.0), judged(i, "human", True)]
        said.append(judged(i, "llm_judge", True))
    assert measure_sources(said)["llm_judge"].agreement == 1.0
