"""The logistic function on arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)), of the shape of ``x`` and without an overflow."""
    values: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(x / 2))
    return values
