"""How far a threshold on the scores moves from one version to the next by which anchors happened to be chosen.

A population of texts has logits under two versions that agree in part, on different levels and scales. Each version is
calibrated on the same anchors, and a threshold at a score of 1 is set on the first. With all texts as anchors, it keeps
its place in the second version's scores. Its move with n anchors, in deviations of the scores, is simulated.
"""

from __future__ import annotations

import numpy as np
import pytest

from rewardloop.formats.store import Calibration
from rewardloop_trainer.reward.calibrate import fit_calibration
from rewardloop_trainer.reward.evaluate import Floats

_TEXTS = 100_000
_DRAWS = 600
_THRESHOLD = 1.0


def moves(anchors: int, *, outlier: float = 0.0, robust: bool = True) -> tuple[float, float]:
    """The 50th and 95th percentile of the threshold's absolute move.

    Args:
        anchors: The number of anchors.
        outlier: How far the second version's logit of one anchor is off, in deviations.
        robust: Whether outlying logits are drawn in, as `fit_calibration` does; otherwise plain mean and deviation.
    """
    chance = np.random.default_rng(anchors)
    quality, one, two = chance.normal(size=(3, _TEXTS))
    first = 0.9 * quality + 0.436 * one  # each deviation is 1, and the correlation of the versions is 0.81
    second = 40 * (0.9 * quality + 0.436 * two) - 7
    fit = fit_calibration if robust else _plain
    found = []
    for _ in range(_DRAWS):
        places = chance.choice(_TEXTS, anchors, replace=False)
        logits = second[places].copy()
        logits[0] += 40 * outlier
        before, after = fit(first[places]), fit(logits)
        # The texts at the threshold are (1 - offset) / scale deviations above the mean of all texts in each version.
        at_before = (_THRESHOLD - before.offset) / before.scale
        at_after = ((_THRESHOLD - after.offset) / after.scale + 7) / 40
        found.append(abs(at_after - at_before))
    low, high = np.quantile(found, (0.5, 0.95))
    return float(low), float(high)


def _plain(logits: Floats) -> Calibration:
    return Calibration(1 / float(logits.std()), -float(logits.mean() / logits.std()))


@pytest.mark.parametrize(("anchors", "least", "most"), [(20, 0.3, 0.45), (64, 0.17, 0.25), (256, 0.08, 0.12)])
def test_more_anchors_hold_a_threshold_better(anchors: int, least: float, most: float) -> None:
    _, high = moves(anchors)
    assert least < high < most
    assert high == pytest.approx(moves(anchors, robust=False)[1], rel=0.05)  # nothing is lost without outliers


@pytest.mark.parametrize(("anchors", "most"), [(20, 1.0), (64, 0.4), (256, 0.15)])
def test_an_outlier_moves_a_threshold_little(anchors: int, most: float) -> None:
    _, high = moves(anchors, outlier=50.0)
    assert high < most
    assert moves(anchors, outlier=50.0, robust=False)[0] > 4 * high
