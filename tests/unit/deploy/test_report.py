"""The demo's report: figures in the table, in valid JSON, and a figure that can be opened."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rewardloop_demo.figure import draw
from rewardloop_demo.record import DemoRecord, FruitlessRound, PolicyJudge, RoundRecord
from rewardloop_demo.report import summary, table, write

ROUNDS = (
    RoundRecord(0, 60, 0, "1", 0.561, "1", 0.5, 0.46, 0.54),
    RoundRecord(1, 110, 400, "2", 0.702, "1", reward_swaps=1, freshness_p50_s=14, freshness_max_s=31),
    RoundRecord(2, 170, 1_820, "3", 0.751, "2", 0.71, 0.66, 0.76, 2, 1, 18, 40, win_prompts=300),
)


def _demo(rounds: tuple[RoundRecord, ...] = ROUNDS) -> DemoRecord:
    kinds = {"choice": 1_700, "thumb": 120}
    return DemoRecord(3, rounds, 0.561, 0.862, 400, 300, kinds, 342.0, 3.2, algorithm="online-dpo")


def _printed(demo: DemoRecord) -> str:
    console = Console(width=160, record=True, force_terminal=False)
    console.print(table(demo))
    return console.export_text()


def test_the_table_shows_every_round_and_marks_what_was_not_measured() -> None:
    lines = _printed(_demo()).splitlines()
    assert "by online DPO" in lines[0]
    last = next(line for line in lines if "1,820" in line and "v3" in line)
    for figure in ("v3", "v2", "0.751", "0.71 (0.66-0.76)", "18 s / 40 s"):
        assert figure in last
    unmeasured = next(line for line in lines if "110 s" in line)
    assert "nan" not in unmeasured
    assert " - " in unmeasured


def test_the_summary_puts_the_accuracy_beside_its_bounds_and_judges_the_interval() -> None:
    text = summary(_demo())
    for figure in ("0.561", "0.751", "0.862", "71% of 300", "(0.66-0.76, above 0.65)", "1,700 choice", "3.2 GiB"):
        assert figure in text
    short = _demo((RoundRecord(1, 1, 1, "1", 0.5, "2", 0.62, 0.55, 0.69, policy_swaps=1),))
    assert "not wholly above 0.65" in summary(short)
    assert "beats the starter" not in summary(_demo(ROUNDS[:1]))


def test_the_reward_model_stands_beside_a_bag_of_words_with_its_interval() -> None:
    measured = replace(ROUNDS[2], reward_low=0.714, reward_high=0.788)
    demo = replace(_demo((*ROUNDS[:2], measured)), bag_of_words_accuracy=0.687)
    assert "last RM 0.751 (0.714-0.788), bag of words 0.687, ceiling" in summary(demo)
    assert "0.751 (0.71-0.79)" in _printed(demo)


def test_the_change_from_the_version_before_stands_with_its_interval() -> None:
    changed = replace(ROUNDS[2], reward_change=0.049, reward_change_low=0.02, reward_change_high=0.078)
    assert "+0.049 ±0.029" in _printed(_demo((*ROUNDS[:2], changed)))


def test_rounds_without_a_version_are_listed_with_their_reasons() -> None:
    refused = FruitlessRound("policy", 1, "refused", 95.0, 850, ("needs 12 more held-out prompts", "win rate [0.4]"))
    printed = _printed(replace(_demo(), fruitless=(refused,)))
    line = next(line for line in printed.splitlines() if "policy 1" in line)
    for part in ("95 s", "850", "refused: needs 12 more held-out prompts; win rate [0.4]"):
        assert part in line
    assert "Rounds: 2 of the reward model (2 promoted); 2 of the policy (1 promoted, 1 refused)." in printed
    assert "Rounds without" not in _printed(_demo())


def test_the_summary_says_who_judged_the_policies() -> None:
    assert "Judge" not in summary(_demo())
    live = replace(_demo(), judge=PolicyJudge(is_own=False))
    assert "Judge of policies: the live reward model" in summary(live)
    own = summary(replace(_demo(), judge=PolicyJudge(True, 1_612, 0.674, 0.642)))
    assert "It learned 1,612 signals, which taught nothing else, and agrees with at least 0.64" in own


def test_results_are_strict_json_with_null_for_what_was_not_measured(tmp_path: Path) -> None:
    _, results = write(_demo(), tmp_path / "new" / "folder")

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(results.read_text(), parse_constant=refuse)
    assert data["format_version"] == 1
    assert [r["win_rate"] for r in data["rounds"]] == [0.5, None, 0.71]
    assert data["rounds"][2]["signals"] == 1_820
    assert data["signal_kinds"] == {"choice": 1_700, "thumb": 120}


@pytest.mark.parametrize(
    "demo",
    [
        _demo(),
        _demo(()),
        _demo(ROUNDS[1:2]),
        DemoRecord(0, (RoundRecord(0, 0, 0, "1", math.nan, "1"),), math.nan, math.nan, 0, 0, {}, 1.0),
    ],
    ids=["three rounds", "no round", "no win rate", "nothing measured"],
)
def test_any_demo_can_be_drawn_printed_and_written(demo: DemoRecord, tmp_path: Path) -> None:
    from matplotlib import image

    assert image.imread(draw(demo, tmp_path / "figure.png")).shape[1] > 1_000
    assert "What the loop learned" in _printed(demo)
    figure, results = write(demo, tmp_path)
    assert figure.stat().st_size > 5_000
    assert json.loads(results.read_text())["seed"] == demo.seed
