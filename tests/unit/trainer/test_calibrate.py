import math
from pathlib import Path

import numpy as np
import pytest

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Turn
from rewardloop_trainer.data.preferences import Labelled, Pair, Record
from rewardloop_trainer.reward.calibrate import (
    Anchor,
    CorruptAnchors,
    choose_anchors,
    fit_calibration,
    fit_length_slope,
    fixed_anchors,
    read_anchors,
    write_anchors,
)


def records(count: int, start: int = 0) -> list[Record]:
    return [Pair((Turn("user", f"question {i // 3}"),), f"good {i}", f"bad {i}") for i in range(start, start + count)]


def test_anchors_get_mean_0_and_deviation_1() -> None:
    # 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    found = fit_calibration(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.scale == pytest.approx(3.5**-0.5)
    assert found.offset == pytest.approx(-3 / 3.5**0.5)


def test_an_affine_change_of_the_logits_does_not_change_the_scores() -> None:
    logits = np.random.default_rng(0).normal(size=100)
    first, second = fit_calibration(logits), fit_calibration(40 * logits - 7)
    np.testing.assert_allclose(
        first.scale * logits + first.offset, second.scale * (40 * logits - 7) + second.offset, atol=1e-9
    )


def test_constant_logits_are_moved_to_0_and_not_stretched() -> None:
    assert fit_calibration(np.full(5, 3.0)) == Calibration(1.0, -3.0)
    assert fit_calibration(np.array([2.0])) == Calibration(1.0, -2.0)
    assert fit_calibration(np.float32(1e4) + np.array([0.0, 1e-3])).scale == 1.0


def test_without_anchors_scores_are_logits() -> None:
    assert fit_calibration(np.zeros(0)) == Calibration(1.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        fit_calibration(np.array([0.0, bad]))


def test_anchors_are_distinct_spread_over_prompts_and_independent_of_order() -> None:
    given = [*records(300), Labelled((Turn("user", "question 0"),), "good 0", 1.0)]
    chosen = choose_anchors(given, limit=120)
    assert chosen == choose_anchors(given[::-1], limit=120)
    assert len(set(chosen)) == len(chosen) == 120
    assert len({a.prompt for a in chosen}) == 100  # all prompts, before any prompt's second response


def test_the_first_choice_is_kept_for_good(tmp_path: Path) -> None:
    first = fixed_anchors(tmp_path, records(30))
    assert len(first) == 60
    assert fixed_anchors(tmp_path, records(30, start=1_000)) == first


def test_nothing_is_fixed_before_there_is_data(tmp_path: Path) -> None:
    assert fixed_anchors(tmp_path, []) == ()
    assert len(fixed_anchors(tmp_path, records(3))) == 6


def test_any_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = Anchor((Turn("system", "\u2028 line\n"), Turn("user", '"日本"\r\n🙂')), "tab\t\u0085 end")
    write_anchors(tmp_path / "a.jsonl", [odd, odd])
    assert read_anchors(tmp_path / "a.jsonl") == (odd, odd)


@pytest.mark.parametrize("row", ["{", '{"prompt": []}', "[]", '{"prompt": [{"role": "user"}], "response": "x"}'])
def test_a_damaged_anchor_file_is_an_error_and_stays(tmp_path: Path, row: str) -> None:
    path = tmp_path / "anchors.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "q"}], "response": "x"}\n' + row + "\n")
    with pytest.raises(CorruptAnchors, match="row 2"):
        fixed_anchors(tmp_path, records(3))
    assert row in path.read_text()


def test_full_length_control_leaves_margins_uncorrelated_with_length() -> None:
    rng = np.random.default_rng(1)
    log_ratios = rng.normal(size=400)
    margins = 0.7 * log_ratios + rng.normal(size=400)
    slope = fit_length_slope(margins, log_ratios, 1.0)
    assert slope == pytest.approx(0.7, abs=0.15)
    assert (margins - slope * log_ratios) @ log_ratios == pytest.approx(0.0, abs=1e-9)
    assert fit_length_slope(margins, log_ratios, 0.5) == pytest.approx(slope / 2)
    assert fit_length_slope(margins, log_ratios, 0.0) == 0.0
    assert fit_length_slope(np.ones(2), np.zeros(2), 1.0) == 0.0


def test_score_takes_the_length_back_before_it_scales() -> None:
    calibration = Calibration(scale=2.0, offset=1.0, length_slope=0.5)
    assert calibration.score(3.0, 1) == pytest.approx(7.0)
    assert calibration.score(3.0, 20) == pytest.approx(2 * (3.0 - 0.5 * math.log(20)) + 1)
