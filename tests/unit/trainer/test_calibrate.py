import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reward_bases import encoder_for, save_base

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoded, Encoder, RefusedConversation, Turn
from rewardloop_trainer.reward.anchors import LEAST_ANCHORS, Anchor, AnchorSet, UnusableAnchors
from rewardloop_trainer.reward.calibrate import (
    anchor_logits,
    calibrate_model,
    fit_calibration,
)
from rewardloop_trainer.reward.model import RewardModel


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
    with pytest.raises(UnusableAnchors, match="1 anchors are not finite"):
        fit_calibration(np.array([0.0, bad]))


def test_an_outlier_does_not_fix_the_scale() -> None:
    logits = np.random.default_rng(0).normal(2.0, 0.5, size=64)
    plain = fit_calibration(logits)
    for outlier in (50.0, -1e6):
        found = fit_calibration(np.append(logits[:-1], outlier))
        # Drawn in to less than 4 deviations, one of 64 adds at most a quarter to the variance.
        assert found.scale == pytest.approx(plain.scale, rel=0.15)
        assert found.offset == pytest.approx(plain.offset, rel=0.15)


def test_one_outlier_among_equal_logits_is_no_scale() -> None:
    assert fit_calibration(np.append(np.full(63, 3.0), 100.0)) == Calibration(1.0, -3.0)


def test_two_kinds_of_logits_without_an_outlier_are_standardised_plainly() -> None:
    found = fit_calibration(np.repeat([0.0, 1.0], [70, 30]))  # variance 0.7 * 0.3
    assert found.scale == pytest.approx(0.21**-0.5)


def _anchor_set(count: int, least: int = LEAST_ANCHORS) -> AnchorSet:
    texts = ["ok " * (i % 9) + f"answer {i}" for i in range(count)]
    return AnchorSet(tuple(Anchor((Turn("user", f"q{i}"),), text) for i, text in enumerate(texts)), "given", least)


def test_the_note_says_on_what_a_version_is_calibrated(tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("llama", tmp_path), heads=2)
    encoder = encoder_for("llama")
    anchors = _anchor_set(70)
    scale = calibrate_model(model, encoder, anchors)
    logits = anchor_logits(model, encoder, anchors.anchors)
    assert scale.calibration == fit_calibration(logits)
    assert scale.note.startswith(f"{anchors}, 70 distinct: level {logits.mean():.4g}, deviation ")
    assert str(anchors).startswith("70 given (sha256 ")


def test_too_few_anchors_leave_scores_as_logits_and_the_note_says_so(tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("llama", tmp_path), heads=2)
    few = _anchor_set(12)
    scale = calibrate_model(model, encoder_for("llama"), few)
    assert scale.calibration == Calibration(1.0, 0.0)
    assert scale.note == f"none, scores are logits: the model reads 12 distinct anchors of {few}, fewer than 64"
    kept = calibrate_model(model, encoder_for("llama"), _anchor_set(12, least=2))
    assert kept.calibration.scale != 1.0


def test_anchors_that_the_layout_refuses_are_left_out_and_counted(tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("llama", tmp_path), heads=2)
    anchors = _anchor_set(70)
    refused = AnchorSet((*anchors.anchors, Anchor((), "an answer to nothing")), "given")
    scale = calibrate_model(model, _Refusing("llama"), refused)
    assert "71 given" in scale.note
    assert "1 of which the text layout has no form for, 70 distinct" in scale.note
    assert scale.calibration == calibrate_model(model, encoder_for("llama"), anchors).calibration


def test_a_model_without_finite_logits_has_no_scale(tmp_path: Path) -> None:
    model = RewardModel.from_base(save_base("llama", tmp_path), heads=2)
    with torch.no_grad():
        model.heads.bias.fill_(math.nan)
    with pytest.raises(UnusableAnchors, match="70 anchors are not finite"):
        calibrate_model(model, encoder_for("llama"), _anchor_set(70))


class _Refusing(Encoder):
    """An encoder whose layout has no form for an empty conversation."""

    def __init__(self, kind: str) -> None:
        known = encoder_for(kind)
        super().__init__(known.tokenizer, known.format, known.max_length)

    def pair(self, conversation: Sequence[Turn], response: str) -> Encoded:
        if not conversation:
            raise RefusedConversation("empty")
        return super().pair(conversation, response)


def test_score_takes_the_length_back_before_it_scales() -> None:
    calibration = Calibration(scale=2.0, offset=1.0, length_slope=0.5)
    assert calibration.score(3.0, 1) == pytest.approx(7.0)
    assert calibration.score(3.0, 20) == pytest.approx(2 * (3.0 - 0.5 * math.log(20)) + 1)


def test_lengths_that_training_did_not_see_count_as_the_nearest_that_it_saw() -> None:
    calibration = Calibration(scale=2.0, offset=1.0, length_slope=0.5, least_tokens=10, most_tokens=100)
    assert calibration.score(3.0, 1) == calibration.score(3.0, 10) == pytest.approx(2 * (3.0 - 0.5 * math.log(10)) + 1)
    assert calibration.score(3.0, 400) == calibration.score(3.0, 100)
    assert calibration.score(3.0, 20) == pytest.approx(2 * (3.0 - 0.5 * math.log(20)) + 1)
