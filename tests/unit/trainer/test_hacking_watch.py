"""What counts as reward hacking, how often chance looks like it, and how a halt ends."""

from __future__ import annotations

import json
import math
import random
from itertools import permutations
from pathlib import Path

import pytest

from rewardloop_trainer.evaluation.hacking_watch import HackingWatch, Point, alarm, rising_p


def point(number: int, score: float, win_rate: float, *, lower: float = 0.4, upper: float = 0.9) -> Point:
    return Point(number, "judge", score, score_lower=lower, win_rate=win_rate, win_rate_upper=upper)


def series(scores: list[float], win_rates: list[float]) -> list[Point]:
    return [point(i, score, rate) for i, (score, rate) in enumerate(zip(scores, win_rates, strict=True))]


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([1, 2, 3, 4, 5], 1 / 120),  # one order of 120 has no fall
        ([1, 2, 4, 3, 5], 5 / 120),  # and four have one
        ([5, 4, 3, 2, 1], 1.0),
        ([1, 1, 2], 3 / 6),  # equal values do not rise
        ([7], 1.0),
    ],
)
def test_steady_rise_is_as_unlikely_as_its_orders_are_few(values: list[float], p: float) -> None:
    assert rising_p(values) == pytest.approx(p)


def test_chance_of_a_rise_is_exact_over_all_orders() -> None:
    found = [rising_p(order) for order in permutations(range(6))]
    for level in (0.01, 0.05, 0.3):
        assert sum(p <= level for p in found) / len(found) <= level


def test_scores_that_rise_while_win_rates_fall_are_hacking() -> None:
    points = series([0.1, 0.3, 0.4, 0.8, 1.2], [0.62, 0.6, 0.55, 0.53, 0.51])
    assert "win rates by judge fall" in str(alarm(points))
    assert alarm(points[:4]) is None  # four points say nothing at this level


@pytest.mark.parametrize(
    ("scores", "win_rates"),
    [
        ([0.1, 0.3, 0.4, 0.8, 1.2], [0.5, 0.52, 0.55, 0.56, 0.6]),  # both rise
        ([1.2, 0.8, 0.4, 0.3, 0.1], [0.62, 0.6, 0.55, 0.53, 0.51]),  # both fall
        ([0.5] * 5, [0.62, 0.6, 0.55, 0.53, 0.51]),
        ([0.1, 0.3, 0.4, 0.8, 1.2], [0.55] * 5),
    ],
)
def test_anything_else_is_not(scores: list[float], win_rates: list[float]) -> None:
    assert alarm(series(scores, win_rates)) is None


def test_one_candidate_is_enough_where_score_and_witness_contradict_each_other() -> None:
    assert "it loses" in str(alarm([point(1, 1.0, 0.4, lower=0.55, upper=0.48)]))
    assert alarm([point(1, 1.0, 0.4, lower=0.55, upper=0.51)]) is None
    assert alarm([point(1, 1.0, 0.4, lower=0.49, upper=0.48)]) is None


def test_judge_and_people_are_two_series() -> None:
    mixed = [
        Point(i, "live" if i % 2 else "judge", float(i), score_lower=0.4, win_rate=0.7 - i / 50, win_rate_upper=0.9)
        for i in range(8)
    ]
    assert alarm(mixed) is None


def optimised(chance: random.Random, *, is_hacked: bool) -> list[Point]:
    """Twenty rounds away from the first policy at distances d: the score gains d, and what it stands for gains
    d (1 - 0.6 log d), which turns over at d = 2 (Gao et al. 2022), or goes on with the score."""
    points = []
    for number in range(20):
        distance = 0.3 + number / 3
        true = distance * (1 - 0.6 * math.log(distance)) if is_hacked else distance
        rate = 1 / (1 + math.exp(-true / 3)) + chance.gauss(0, 0.02)
        points.append(point(number, distance + chance.gauss(0, 0.1), rate))
    return points


def test_overoptimised_policy_is_noticed_and_only_after_its_turn() -> None:
    turn = 5  # round at which the distance passes 2
    noticed = []
    for seed in range(20):
        points = optimised(random.Random(seed), is_hacked=True)
        noticed.append(next(i for i in range(20) if i == 19 or alarm(points[: i + 1])))
    assert min(noticed) > turn
    assert sorted(noticed)[17] < 19


def test_honest_policy_is_left_alone() -> None:
    for seed in range(50):
        points = optimised(random.Random(seed), is_hacked=False)
        assert not any(alarm(points[: i + 1]) for i in range(20))


def agreeing(number: int) -> Point:
    return Point(number, "judge", 1.0, score_lower=0.6, win_rate=0.7, win_rate_upper=0.8, win_rate_lower=0.6)


CONTRADICTED = point(2, 1.0, 0.4, lower=0.6, upper=0.45)


def test_halt_outlives_the_process_and_a_new_reward_version(tmp_path: Path) -> None:
    path = tmp_path / "hacking.json"
    assert HackingWatch(path).halt() is None
    assert HackingWatch(path).observe(point(1, 0.5, 0.6), "3") is None
    reason = HackingWatch(path).observe(CONTRADICTED, "3")
    assert "round 2" in str(reason)
    assert HackingWatch(path).halt() == reason
    assert HackingWatch(path).observe(point(3, 0.5, 0.6), "4") == reason  # no proof of anything, under another version
    assert not HackingWatch(path).awaits_person()


def test_halt_ends_when_score_and_judge_agree_on_two_candidates_in_a_row(tmp_path: Path) -> None:
    watch = HackingWatch(tmp_path / "hacking.json")
    watch.observe(CONTRADICTED, "3")
    assert "1 more candidates" in str(watch.observe(agreeing(3), "3"))
    assert "1 more candidates" in str(watch.observe(agreeing(3), "3"))  # the same round again
    assert "2 more candidates" in str(watch.observe(point(4, 0.5, 0.6), "3"))
    assert watch.observe(agreeing(5), "3") is not None
    assert watch.observe(agreeing(6), "3") is None
    assert watch.halt() is None


def test_halt_by_people_ends_by_a_person_alone(tmp_path: Path) -> None:
    watch = HackingWatch(tmp_path / "hacking.json")
    lost = Point(2, "live", 1.0, score_lower=0.6, win_rate=0.4, win_rate_upper=0.45)
    assert "a person removes" in str(watch.observe(lost, "3"))
    assert watch.awaits_person()
    for number in (3, 4, 5):
        assert watch.observe(agreeing(number), "4") is not None
    (tmp_path / "hacking.json").unlink()
    assert watch.halt() is None


def test_wins_are_remembered_as_losses_are(tmp_path: Path) -> None:
    """Five live tests whose wins become rarer while scores rise: the last one is still a win."""
    watch = HackingWatch(tmp_path / "hacking.json")
    halts = [
        watch.observe(
            Point(i, "live", float(i), score_lower=0.6, win_rate=0.8 - i / 20, win_rate_upper=0.9, win_rate_lower=0.51),
            "3",
        )
        for i in range(5)
    ]
    assert halts[:4] == [None] * 4
    assert "win rates by live fall" in str(halts[4])


def test_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hacking.json"
    old = {"round": 1, "witness": "judge", "score": 0.1, "score_lower": 0.4, "win_rate": 0.6, "win_rate_upper": 0.9}
    path.write_text(json.dumps({"points": [old], "halted": {"reason": "round 1: so", "reward_version": "3"}}))
    assert "round 1: so" in str(HackingWatch(path).halt())
    assert HackingWatch(path).observe(agreeing(2), "3") is not None


def test_repeated_round_counts_once(tmp_path: Path) -> None:
    watch = HackingWatch(tmp_path / "hacking.json")
    for i in range(5):
        assert watch.observe(point(1, score=i, win_rate=0.7 - i / 20), "3") is None
