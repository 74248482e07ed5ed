"""The gates' operating characteristics: the table of docs/explanation/gates.md, drawn again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.gate_worlds import (
    DIFFERENCES,
    FIRST,
    GATES,
    RARER,
    VETOES,
    live_decision,
    ratchet,
    shares_won,
    slack,
    two_tastes_decided,
)

from rewardloop_trainer.evaluation.policy_gate import plan_of
from rewardloop_trainer.evaluation.sequential import WinRatePlan, obrien_fleming
from rewardloop_trainer.policy.settings import PolicyGateLimits

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "gates.md"
NOMINAL = 0.05
# Of the table's own draws; a live test is drawn a quarter as often.
TABLE_RUNS = 1_000


def table(heading: str = "candidate differs by") -> dict[str, dict[int, float]]:
    """The rates of the table with this heading, by row and points."""
    below = PAGE.read_text(encoding="utf-8").partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+ (?:prompts|people)) \|(.+)\|$", below, re.MULTILINE)
    return {
        name: {p: float(cell) / 100 for p, cell in zip(DIFFERENCES, cells.split("|"), strict=True)}
        for name, cells in rows
    }


def vetoes() -> dict[str, dict[int, float]]:
    return table("by the version before it differs by")


def check(name: str, points: int, runs: int) -> None:
    """Draw a cell again: it must agree with the table, and no candidate that is no better may pass too often."""
    told, found = table()[name][points], GATES[name](points / 100, runs)
    table_runs = TABLE_RUNS // 4 if name.startswith("live") else TABLE_RUNS
    assert abs(found - told) <= slack(told, runs, 4) + slack(told, table_runs, 4), (found, told)
    if points <= 0:
        assert found <= NOMINAL + slack(NOMINAL, runs)


def test_table_has_every_gate_and_lets_no_worse_candidate_pass() -> None:
    rows = table()
    assert set(rows) == set(GATES)
    for name, rates in rows.items():
        runs = TABLE_RUNS // 4 if name.startswith("live") else TABLE_RUNS
        for points in (-5, -2, -1, 0):
            assert rates[points] <= NOMINAL + (slack(NOMINAL, runs) if points == 0 else 0), (name, points)
        assert rates[5] == max(rates.values())


@pytest.mark.parametrize("points", [-1, 0, 5])
@pytest.mark.parametrize(
    "name", ["reward, choices about 300 prompts", "reward, thumbs about 60 prompts", "policy, 200 prompts"]
)
def test_gate_passes_as_often_as_the_table_says(name: str, points: int) -> None:
    check(name, points, 200)


def test_the_version_before_refuses_few_that_are_equal_or_better_and_costs_little_power() -> None:
    rows, alone = table(), vetoes()
    assert set(alone) == set(VETOES)
    for prompts in (60, 200, 400):
        rates = alone[f"the version before alone, {prompts} prompts"]
        assert rates[0] >= 0.975 - slack(0.025, TABLE_RUNS)
        assert rates[5] >= 0.995
        assert rates[-5] == min(rates.values())
        cost = rows[f"policy, {prompts} prompts"][5] - rows[f"policy, with the version before, {prompts} prompts"][5]
        assert cost <= 0.01 + 2 * slack(0.5, TABLE_RUNS, 2)


@pytest.mark.parametrize(("name", "points"), [(n, p) for n in VETOES if " 200 " in n for p in (-5, 0)])
def test_the_version_before_refuses_as_often_as_the_table_says(name: str, points: int) -> None:
    told, found = vetoes()[name][points], VETOES[name](points / 100, 200)
    assert abs(found - told) <= slack(told, 200, 4) + slack(told, TABLE_RUNS, 4), (found, told)


def first_versions() -> dict[str, dict[int, float]]:
    """The rates of the table of first versions, by row and thumbs down."""
    heading = f"| thumbs down | {' | '.join(map(str, RARER))} |"
    below = PAGE.read_text(encoding="utf-8").partition(heading)[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (AUC [^|]+) \|(.+)\|$", below, re.MULTILINE)
    return {
        name: {n: float(cell) / 100 for n, cell in zip(RARER, cells.split("|"), strict=True)} for name, cells in rows
    }


# The table of first versions is drawn twice as often.
FIRST_RUNS = 2 * TABLE_RUNS


def test_table_of_first_versions_lets_no_random_model_pass_and_power_grows() -> None:
    told = first_versions()
    assert set(told) == set(FIRST)
    for thumbs in (50, 200):
        random, fair, good = (told[f"AUC {auc:g}, {thumbs} thumbs"] for auc in (0.5, 0.75, 0.9))
        assert all(rate <= NOMINAL for rate in random.values())
        for rates in (fair, good):
            assert list(rates.values()) == sorted(rates.values())
        assert fair[10] > 0.7
        assert good[3] > 0.75


def draw_first_version_again(name: str, rarer: int, runs: int) -> None:
    """Compare a cell of the table with ``runs`` new draws of it, which a random model seldom passes."""
    told, found = first_versions()[name][rarer], FIRST[name](rarer, runs)
    assert abs(found - told) <= slack(told, runs, 4) + slack(told, FIRST_RUNS, 4), (found, told)
    if "AUC 0.5" in name:
        assert found <= NOMINAL + slack(NOMINAL, runs)


@pytest.mark.parametrize("rarer", RARER)
@pytest.mark.parametrize("name", [name for name in FIRST if "AUC 0.9" not in name])
def test_a_first_version_passes_by_thumbs_as_often_as_the_table_says(name: str, rarer: int) -> None:
    draw_first_version_again(name, rarer, 300)


@pytest.mark.long
@pytest.mark.parametrize("rarer", RARER)
@pytest.mark.parametrize("name", FIRST)
def test_every_cell_of_the_table_of_first_versions_is_drawn_again(name: str, rarer: int) -> None:
    draw_first_version_again(name, rarer, 1_500)


@pytest.mark.long
@pytest.mark.parametrize("points", DIFFERENCES)
@pytest.mark.parametrize("name", VETOES)
def test_every_cell_of_the_table_of_the_version_before_is_drawn_again(name: str, points: int) -> None:
    told, found = vetoes()[name][points], VETOES[name](points / 100, 400)
    assert abs(found - told) <= slack(told, 400, 4) + slack(told, TABLE_RUNS, 4), (found, told)


@pytest.mark.long
@pytest.mark.parametrize("points", DIFFERENCES)
@pytest.mark.parametrize("name", GATES)
def test_every_cell_of_the_table_is_drawn_again(name: str, points: int) -> None:
    check(name, points, 60 if name.startswith("live") else 400)


def test_thirty_candidates_that_are_each_worse_lose_less_than_a_point() -> None:
    """Each is truly 0.8 points worse than the version that is live then; if all passed, 24 points would be lost."""
    ends = [ratchet(seed) for seed in range(12)]
    assert np.mean([end.gained for end in ends]) > -0.01
    assert min(end.gained for end in ends) > -0.03


@pytest.mark.long
def test_the_ratchet_holds_on_average_over_many_lines() -> None:
    ends = [ratchet(seed) for seed in range(100, 300)]
    assert np.mean([end.gained for end in ends]) > -0.005
    # A line offers thirty candidates; of single candidates fewer than one in twenty passes.
    assert np.mean([end.promoted for end in ends]) < 30 * NOMINAL


def test_one_person_and_two_tastes_decide_no_live_test() -> None:
    rng = np.random.default_rng(0)
    assert {live_decision({"p": 1.0}, {"p": 900}, rng) for _ in range(5)} == {"running"}
    assert two_tastes_decided(150) <= NOMINAL + slack(NOMINAL, 150)


def test_policy_gate_is_not_fooled_by_many_small_wins_and_few_great_losses() -> None:
    """A win rate of one half whose prompts are far from normally distributed."""
    plan = plan_of(PolicyGateLimits.model_validate({}), 200)
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(2_000):
        wins = np.where(rng.random(200) < 0.1, 0.05, 0.55)
        passed += any(plan.look(wins[:end]).decision == "better" for end in plan.ends)
    assert passed / 2_000 <= 2 * NOMINAL  # the t statistic of so skewed values is not exact


@pytest.mark.parametrize(("looks", "constant"), [(1, 1.645), (2, 1.678), (3, 1.710), (4, 1.733), (5, 1.751)])
def test_boundary_is_that_of_the_tables(looks: int, constant: float) -> None:
    """Jennison and Turnbull 2000, table 2.3, two-sided 0.1."""
    assert obrien_fleming(0.05, looks) == pytest.approx(constant, abs=2e-3)


def test_a_clear_winner_needs_few_prompts_and_a_clear_loser_no_more_than_half() -> None:
    plan = WinRatePlan(400, 0.5, 0.05)
    rng = np.random.default_rng(5)
    for win_rate, decision in ((0.8, "better"), (0.3, "worse")):
        shares = shares_won(400, win_rate, rng)
        first = next(end for end in plan.ends if plan.look(shares[:end]).decision != "open")
        assert plan.look(shares[:first]).decision == decision
        assert first <= 240
