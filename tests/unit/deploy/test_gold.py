"""What the report of the gold experiment says of a run."""

from __future__ import annotations

import pytest
from bench.gold_curve import smooth, turning_point


def test_smoothing_takes_only_what_came_before() -> None:
    assert smooth([0, 10, 0, 0, 0, 0]) == pytest.approx([0, 5, 10 / 3, 2.5, 2, 2])


def test_gold_turns_where_its_smoothed_gain_was_best() -> None:
    gold = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    points = [{"step": i + 1, "gold": value, "proxy": float(i)} for i, value in enumerate(gold)]
    turn = turning_point(points)
    assert (turn["step"], turn["best"], turn["last"]) == (6, 1.0, 0.0)
    assert turn["lost_third"] == 8  # 0.8, then 0.6
    assert turn["proxy_then"] < turn["proxy_last"]


def test_gold_that_only_rises_loses_nothing() -> None:
    turn = turning_point([{"step": i, "gold": float(i), "proxy": 0.0} for i in range(8)])
    assert (turn["step"], turn["lost_third"]) == (7, 0)
