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
from rewardloop_trainer.data.length_balance import length_weights
from rewardloop_trainer.reward.anchors import Anchor, AnchorSet, UnusableAnchors, distinct_count, readable
from rewardloop_trainer.reward.evaluate import Floats
from rewardloop_trainer.reward.examples import logits_of
from rewardloop_trainer.reward.model import RewardModel

_TOKEN_BUDGET = 4096
# Logits further than this from the median, in widths between the first and the last decile, are moved to that distance.
# Of a normal sample 1 in 8,000 is that far.
_FARTHEST = 1.5
_SLOPES = 21  # slopes that are compared


@dataclass(frozen=True, slots=True)
class Scale:
    """A version's calibration, and what the manifest says of it."""

    calibration: Calibration
    note: str


def calibrate_model(model: RewardModel, encoder: Encoder, anchors: AnchorSet, length_slope: float = 0.0) -> Scale:
    """Fit a torch model's map onto the common scale, as `calibrate` does."""
    return calibrate(
        lambda sequences: _head_means(model, encoder, sequences, length_slope), encoder, anchors, length_slope
    )


def calibrate(
    score: Callable[[Sequence[Encoded]], Floats], encoder: Encoder, anchors: AnchorSet, length_slope: float = 0.0
) -> Scale:
    """Fit the map onto the common scale on the anchors that the model reads.

    If these are fewer than the set asks for, scores are the logits (without the share of length), and the note says so.

    Args:
        score: Gives the head-mean logits of sequences, (sequences,), without the share of length.
        encoder: The model's tokenizer and text layout.
        anchors: The anchors.
        length_slope: What the map takes off for each unit of log length.

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
        return Scale(Calibration(length_slope=length_slope), note)
    logits = score(sequences)
    calibration = fit_calibration(logits, length_slope)
    level, deviation = _level_and_deviation(logits)
    moved = int((np.abs(logits - np.median(logits)) > _FARTHEST * _width(logits)).sum())
    note = f"{of}, {distinct} distinct: level {level:.4g}, deviation {deviation:.4g}"
    if _is_noise(level, deviation):
        note = f"only the level, the logits are all about equal: {note}"
    elif moved:
        note += f", with {moved} outlying logits drawn in"
    return Scale(calibration, note)


def anchor_logits(model: RewardModel, encoder: Encoder, anchors: Sequence[Anchor], length_slope: float = 0.0) -> Floats:
    """Head-mean logits of the anchors that the model reads, without the share of length, (anchors,)."""
    return _head_means(model, encoder, readable(encoder, anchors), length_slope)


def fit_length_slope(margins: Floats, log_ratios: Floats, control: float) -> float:
    """Fit how much a unit of log length is worth to the model, times ``control``.

    It is the least-squares slope through 0 of margins on log ratios. With a control of 1, what remains of the margins
    is orthogonal to length over the pairs.

    Args:
        margins: (pairs,), the chosen response's logit minus the rejected one's.
        log_ratios: (pairs,), the log of the chosen response's tokens over the rejected one's.
        control: Share of the dependence on length to remove, from 0 to 1.
    """
    power = float(log_ratios @ log_ratios)
    return control * float(margins @ log_ratios) / power if power > 0 else 0.0


def bounded_length_slope(margins: Floats, log_ratios: Floats, control: float) -> float:
    """Return the slope from 0 to that of `fit_length_slope` with the least loss on the pairs.

    The pairs are weighed so that the longer response wins half of them at every difference of length. A slope that goes
    too far makes the model prefer the shorter response, and loses on these pairs as one that prefers the longer does.

    Args:
        margins: (pairs,), as for `fit_length_slope`.
        log_ratios: (pairs,), likewise.
        control: Most of the dependence on length to remove, from 0 to 1.
    """
    slopes = np.linspace(0.0, fit_length_slope(margins, log_ratios, control), _SLOPES)
    weights = length_weights(log_ratios)
    losses = [float(weights @ np.logaddexp(0.0, slope * log_ratios - margins)) for slope in slopes]
    return float(slopes[int(np.argmin(losses))])


def fit_calibration(logits: Floats, length_slope: float = 0.0) -> Calibration:
    """Fit the map under which the anchors have mean 0 and standard deviation 1.

    Logits far from the others are drawn in first, so that less than a tenth of the anchors cannot fix the scale by
    themselves. If all logits are then equal the map only shifts them to 0, and without any logit it changes nothing.
    The map's scale is positive.

    Args:
        logits: (anchors,), from `anchor_logits` with the same slope.
        length_slope: What the map takes off for each unit of log length.

    Raises:
        UnusableAnchors: If a logit is not finite.
    """
    if logits.size == 0:
        return Calibration(length_slope=length_slope)
    if not np.isfinite(logits).all():
        raise UnusableAnchors(f"the logits of {int((~np.isfinite(logits)).sum())} anchors are not finite")
    level, deviation = _level_and_deviation(logits)
    if _is_noise(level, deviation):
        return Calibration(1.0, -level, length_slope)
    return Calibration(1 / deviation, -level / deviation, length_slope)


def _head_means(model: RewardModel, encoder: Encoder, sequences: Sequence[Encoded], length_slope: float) -> Floats:
    if not sequences:
        return np.zeros(0)
    model.eval()
    with torch.inference_mode():
        logits = logits_of(model, sequences, encoder.format.pad, _TOKEN_BUDGET)
    means: Floats = logits.double().mean(1).numpy()
    return means - length_slope * np.log([s.response_tokens for s in sequences])


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
