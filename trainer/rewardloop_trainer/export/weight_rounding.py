"""Rounds weights to 8-bit integers so that the layer's output changes as little as possible.

Source: GPTQ, Frantar et al. 2022, arXiv:2210.17323. The rows of W are rounded one after another. The error that one
row's rounding adds to the output is compensated by the rows that follow, as far as the layer's inputs are correlated.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int8]

# AVX2 without VNNI adds two products of an activation and a weight in 16 bits, which must not overflow. With
# activations up to 255, 255 * 128 < 2 ** 15 bounds the sum of two neighbouring weights. With activations below 128
# (7 bits) no bound is needed.
PAIR_LIMIT = 128
LIMIT = 127
_DAMPING = 0.01
_BLOCK = 64
_COLUMNS = 1024  # rounded at a time, which bounds the memory of a wide layer


def round_weights(
    weights: Floats, gram: npt.NDArray[np.float64] | None, *, is_pair_limited: bool
) -> tuple[Integers, Floats]:
    """Round the weights of one layer.

    Args:
        weights: (k, n), for inputs of width k and outputs of width n.
        gram: (k, k), X'X of inputs X (tokens, k) that the layer sees; without it each weight is rounded to the nearest
            integer.
        is_pair_limited: Whether the magnitudes of rows 2i and 2i + 1 may add up to at most `PAIR_LIMIT`.

    Returns:
        Integers (k, n) and a scale for each column (n,); integers * scale approximates the weights.
    """
    feedback = None if gram is None else _feedback(gram)
    integers = np.empty(weights.shape, dtype=np.int8)
    steps = np.empty(weights.shape[1], dtype=np.float32)
    for start in range(0, weights.shape[1], _COLUMNS):  # columns do not depend on each other
        part = slice(start, start + _COLUMNS)
        columns = np.array(weights[:, part], dtype=np.float32, order="C")
        integers[:, part], steps[part] = _round_columns(columns, feedback, is_pair_limited=is_pair_limited)
    return integers, steps


def _round_columns(rest: Floats, feedback: Floats | None, *, is_pair_limited: bool) -> tuple[Integers, Floats]:
    """Round some columns (k, columns), which are overwritten."""
    size = np.abs(rest)
    if is_pair_limited:
        even = size if len(size) % 2 == 0 else np.vstack([size, np.zeros_like(size[:1])])
        pairs = even[0::2] + even[1::2]
        steps = np.maximum(pairs.max(0) / (PAIR_LIMIT - 1), size.max(0) / LIMIT)
    else:
        steps = size.max(0) / LIMIT
    steps = np.maximum(steps, np.finfo(np.float32).tiny).astype(np.float32)
    rest /= steps
    if feedback is None:
        return _nearest(rest, is_pair_limited=is_pair_limited), steps
    rounded = np.zeros(rest.shape, dtype=np.int8)
    for start in range(0, len(rest), _BLOCK):
        stop = min(start + _BLOCK, len(rest))
        errors = np.zeros((stop - start, rest.shape[1]), dtype=np.float32)
        for row in range(start, stop):
            limit: npt.NDArray[np.int16] | int = LIMIT
            if is_pair_limited and row % 2:
                limit = np.minimum(LIMIT, PAIR_LIMIT - np.abs(rounded[row - 1].astype(np.int16)))
            rounded[row] = np.clip(np.rint(rest[row]), -limit, limit)
            errors[row - start] = (rest[row] - rounded[row]) / feedback[row, row]
            rest[row + 1 : stop] -= np.outer(feedback[row, row + 1 : stop], errors[row - start])
        rest[stop:] -= feedback[start:stop, stop:].T @ errors
    return rounded, steps


def _nearest(scaled: Floats, *, is_pair_limited: bool) -> Integers:
    """Round each value to its nearest integer within the limits. The values (k, columns) are overwritten."""
    np.rint(scaled, out=scaled)
    np.clip(scaled, -LIMIT, LIMIT, out=scaled)
    if is_pair_limited:
        odd = scaled[1::2]
        limit = PAIR_LIMIT - np.abs(scaled[0::2][: len(odd)])
        np.clip(odd, -limit, limit, out=odd)
    return scaled.astype(np.int8)


def _feedback(gram: npt.NDArray[np.float64]) -> Floats:
    """The upper Cholesky factor, (k, k), of the inverse of the damped gram matrix."""
    damped = gram + np.eye(len(gram)) * (_DAMPING * np.diag(gram).mean() + np.finfo(np.float32).tiny)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    return np.ascontiguousarray(upper, dtype=np.float32)
