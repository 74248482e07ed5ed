"""Keeps scores comparable across versions by fitting each version on one fixed set of anchors.

A newly trained reward model has logits of another level and scale, but a caller's threshold must keep its meaning. So
each version, the first one included, has an affine map under which the same (prompt, response) pairs have mean 0 and
standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoded, Encoder
from rewardloop_trainer.data.length_share import NO_SHARE, LengthShare
from rewardloop_trainer.reward.anchors import Anchor, AnchorSet, UnusableAnchors, distinct_count, readable
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel

_TOKEN_BUDGET = 4096
# Logits further than this from the median, in widths between the first and the last decile, are moved to that distance.
# Of a normal sample 1 in 8,000 is that far.
_FARTHEST = 1.5


@dataclass(frozen=True, slots=True)
class Scale:
    """A version's calibration, and what the manifest says of it."""

    calibration: Calibration
    note: str


def calibrate_model(model: RewardModel, encoder: Encoder, anchors: AnchorSet, length: LengthShare = NO_SHARE) -> Scale:
    """Fit a torch model's map onto the common scale, as `calibrate` does."""
    return calibrate(lambda sequences: _head_means(model, encoder, sequences, length), encoder, anchors, length)


def calibrate(
    score: Callable[[Sequence[Encoded]], Floats], encoder: Encoder, anchors: AnchorSet, length: LengthShare = NO_SHARE
) -> Scale:
    """Fit the map onto the common scale on the anchors that the model reads.

    If these are fewer than the set asks for, scores are the logits (without the share of length), and the note says so.

    Args:
        score: Gives the head-mean logits of sequences, (sequences,), without the share of length.
        encoder: The model's tokenizer and text layout.
        anchors: The anchors.
        length: What the map takes off because of length.

    Raises:
        UnusableAnchors: If a logit is not finite.
    """
    sequences = readable(encoder, anchors.anchors)
    distinct, of = distinct_count(sequences), str(anchors)
    if refused := len(anchors.anchors) - len(sequences):
        of += f", {refused} of which the text layout has no form for"
    if distinct < anchors.least:
        note = (
            f"none, scores are logits: the model reads {distinct} distinct anchors of {of}, fewer than {anchors.least}"
        )
        return Scale(length.calibration(), note)
    logits = score(sequences)
    calibration = fit_calibration(logits, length)
    level, deviation = _level_and_deviation(logits)
    moved = int((np.abs(logits - np.median(logits)) > _FARTHEST * _width(logits)).sum())
    note = f"{of}, {distinct} distinct: level {level:.4g}, deviation {deviation:.4g}"
    if _is_noise(level, deviation):
        note = f"only the level, the logits are all about equal: {note}"
    elif moved:
        note += f", with {moved} outlying logits drawn in"
    return Scale(calibration, note)


def anchor_logits(
    model: RewardModel, encoder: Encoder, anchors: Sequence[Anchor], length: LengthShare = NO_SHARE
) -> Floats:
    """Head-mean logits of the anchors that the model reads, without the share of length, (anchors,)."""
    return _head_means(model, encoder, readable(encoder, anchors), length)


def fit_calibration(logits: Floats, length: LengthShare = NO_SHARE) -> Calibration:
    """Fit the map under which the anchors have mean 0 and standard deviation 1.

    Logits far from the others are drawn in first, so that less than a tenth of the anchors cannot fix the scale by
    themselves. If all logits are then equal the map only shifts them to 0, and without any logit it changes nothing.
    The map's scale is positive.

    Args:
        logits: (anchors,), from `anchor_logits` with the same share of length.
        length: What the map takes off because of length.

    Raises:
        UnusableAnchors: If a logit is not finite.
    """
    if logits.size == 0:
        return length.calibration()
    if not np.isfinite(logits).all():
        raise UnusableAnchors(f"the logits of {int((~np.isfinite(logits)).sum())} anchors are not finite")
    level, deviation = _level_and_deviation(logits)
    if _is_noise(level, deviation):
        return length.calibration(1.0, -level)
    return length.calibration(1 / deviation, -level / deviation)


def _head_means(model: RewardModel, encoder: Encoder, sequences: Sequence[Encoded], length: LengthShare) -> Floats:
    if not sequences:
        return np.zeros(0)
    model.eval()
    with torch.inference_mode():
        logits = logits_of(model, sequences, encoder.format.pad, _TOKEN_BUDGET)
    means: Floats = logits.double().mean(1).numpy()
    return means - length.of(sequences)


def _level_and_deviation(logits: Floats) -> tuple[float, float]:
    """Mean and standard deviation with outlying logits drawn in; without such logits they are the plain ones."""
    median, farthest = float(np.median(logits)), _FARTHEST * _width(logits)
    drawn_in = np.clip(logits, median - farthest, median + farthest)
    return float(drawn_in.mean()), float(drawn_in.std())


def _width(logits: Floats) -> float:
    low, high = np.quantile(logits, (0.1, 0.9))
    return float(high - low)


def _is_noise(level: float, deviation: float) -> bool:
    return deviation <= 1e-6 * max(1.0, abs(level))  # float32 noise
