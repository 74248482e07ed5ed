"""What of a score is taken off because of the response's length alone, and how it is fitted.

The share is linear in the log of the response's tokens. A length outside those that training saw counts as the nearest
of them. Nothing is known of the share there, and a line that went on would favour a response of one token over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardloop.formats.store import Calibration
from rewardloop.formats.text import Encoded
from rewardloop_trainer.data.weights.length_balance import length_weights

Floats = npt.NDArray[np.float64]

_SLOPES = 21  # slopes that are compared
# A hundredth of the responses on either side are outliers, not lengths that training knows.
_SEEN = (0.01, 0.99)


@dataclass(frozen=True, slots=True)
class LengthShare:
    """The share of length in a model's logits.

    Attributes:
        slope: What is taken off for each unit of log length; 0 takes off nothing.
        least_tokens: A shorter response counts as one of so many tokens; 0: no bound.
        most_tokens: A longer one likewise; 0: no bound.
    """

    slope: float = 0.0
    least_tokens: int = 0
    most_tokens: int = 0

    @classmethod
    def of_calibration(cls, calibration: Calibration | None) -> LengthShare:
        """Return the share that a version's scores are served without."""
        if calibration is None:
            return cls()
        return cls(calibration.length_slope, calibration.least_tokens, calibration.most_tokens)

    def calibration(self, scale: float = 1.0, offset: float = 0.0) -> Calibration:
        """Return the calibration that takes off this share; without a slope it has no bounds, either."""
        if not self.slope:
            return Calibration(scale, offset)
        return Calibration(scale, offset, self.slope, self.least_tokens, self.most_tokens)

    def logs(self, response_tokens: Sequence[int]) -> Floats:
        """The logs of lengths, within the bounds, of the same number."""
        lengths = np.maximum(np.asarray(response_tokens, dtype=np.float64), max(self.least_tokens, 1))
        found: Floats = np.log(np.minimum(lengths, self.most_tokens) if self.most_tokens else lengths)
        return found

    def of(self, sequences: Sequence[Encoded]) -> Floats:
        """What is taken off the logits of the sequences, (sequences,)."""
        return self.slope * self.logs([s.response_tokens for s in sequences])

    def ratios(self, sequences: Sequence[Encoded]) -> Floats:
        """The log of the chosen response's tokens over the rejected one's, within the bounds, (pairs,).

        Args:
            sequences: The chosen and the rejected sequence of each pair in turn.
        """
        logs = self.logs([s.response_tokens for s in sequences])
        found: Floats = logs[0::2] - logs[1::2]
        return found


NO_SHARE = LengthShare()


def seen_lengths(response_tokens: Sequence[int]) -> LengthShare:
    """Return the bounds of the lengths that training saw, without a slope and without the hundredth on either side."""
    if not response_tokens:
        return NO_SHARE
    least, most = np.quantile(np.asarray(response_tokens), _SEEN, method="nearest")
    return LengthShare(0.0, int(least), int(most))


def fit_length_slope(margins: Floats, log_ratios: Floats, control: float) -> float:
    """Fit how much a unit of log length is worth to the model, times ``control``.

    It is the least-squares slope through 0 of margins on log ratios. With a control of 1, what remains of the margins
    is orthogonal to length over the pairs.

    Args:
        margins: (pairs,), the chosen response's logit minus the rejected one's.
        log_ratios: (pairs,), from `LengthShare.ratios`.
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
