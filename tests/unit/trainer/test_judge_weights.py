"""Each judge is measured by itself, with an interval, and muted if its weight is shown to be below the floor."""

from __future__ import annotations

import random

from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Pair, Record, SourceName
from rewardloop_trainer.data.weights.source_weights import (
    SourceWeight,
    measure_sources,
    muted_sources,
    weigh_sources,
)

FLOOR = 0.2
# People are right in 17 of 20 cases, so that two agree in 0.745 of the pairs, near what is assumed of them.
PEOPLE = 0.85


def said(pair: int, source: SourceName, annotator: str, is_right: bool) -> Pair:
    better, worse = f"better {pair}", f"worse {pair}"
    chosen, rejected = (better, worse) if is_right else (worse, better)
    prompt = (Turn("user", f"q{pair // 2}"),)  # two pairs of each prompt
    return Pair(prompt, chosen, rejected, 1.0, f"{annotator}/{pair}", annotator=annotator, source=source)


def simulated(pairs: int, judges: dict[str, float], seed: int, people: int = 2) -> list[Record]:
    chance = random.Random(seed)
    found: list[Record] = []
    for i in range(pairs):
        found += [said(i, "human", f"person {n}", chance.random() < PEOPLE) for n in range(people)]
        found += [said(i, "llm_judge", name, chance.random() < right) for name, right in judges.items()]
    return found


def right_at(weight: float) -> float:
    """How often a judge of this weight is right."""
    return 0.5 + weight * (PEOPLE - 0.5)


def measured(pairs: int, weight: float, seed: int) -> SourceWeight:
    return measure_sources(simulated(pairs, {"j": right_at(weight)}, seed))["llm_judge/j"]


def test_judges_are_measured_apart_and_a_new_one_has_the_weight_of_all_together() -> None:
    records = simulated(2_000, {"good": PEOPLE, "poor": right_at(0.3)}, 0)
    found = measure_sources(records)
    assert found["llm_judge/good"].weight > 0.9
    assert 0.2 < found["llm_judge/poor"].weight < 0.4
    fresh = said(9_999, "llm_judge", "new", True)
    weighed = {record.annotator: record.weight for record in weigh_sources([*records, fresh], found)}
    assert weighed["good"] == found["llm_judge/good"].weight
    assert weighed["poor"] == found["llm_judge/poor"].weight
    assert weighed["new"] == found["llm_judge"].weight


def test_a_muted_judge_has_no_weight_and_others_keep_theirs() -> None:
    records = simulated(600, {"good": PEOPLE, "coin": 0.5}, 1)
    found = measure_sources(records)
    assert muted_sources(found, FLOOR) == ["llm_judge/coin"]
    weights = {record.annotator: record.weight for record in weigh_sources(records, found, FLOOR)}
    assert weights["coin"] == 0
    assert weights["good"] > 0.8
    assert muted_sources(found, 0.0) == []


def test_interval_holds_the_weight_in_nearly_all_of_many_runs() -> None:
    for weight in (0.3, 1.0):
        runs = [measured(200, weight, seed) for seed in range(120)]
        assert sum(run.lower <= weight <= run.upper for run in runs) >= 0.92 * len(runs)


def test_judge_at_the_floor_is_rarely_muted_and_a_useless_one_nearly_always() -> None:
    at_floor = sum(measured(200, FLOOR, seed).is_muted(FLOOR) for seed in range(150)) / 150
    useless = sum(measured(800, 0.0, seed).is_muted(FLOOR) for seed in range(40)) / 40
    adverse = sum(measured(100, -0.5, seed).is_muted(FLOOR) for seed in range(60)) / 60
    print(f"muted: at the floor {at_floor:.3f}, useless with 800 pairs {useless:.3f}, adverse with 100 {adverse:.3f}")
    assert at_floor <= 0.06
    assert useless >= 0.7
    assert adverse >= 0.85


def test_nothing_is_muted_by_a_handful_of_pairs() -> None:
    few = measure_sources([said(i, who, who, who == "human") for i in range(38) for who in ("human", "llm_judge")])
    assert (few["llm_judge/llm_judge"].lower, few["llm_judge/llm_judge"].upper) == (0.0, 1.0)
    more = measure_sources([said(i, who, who, who == "human") for i in range(80) for who in ("human", "llm_judge")])
    assert more["llm_judge/llm_judge"].is_muted(FLOOR)
