"""Bounds the gradients of a step before the optimizer takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def clip(parameters: Iterable[torch.Tensor], most: float) -> float:
    """Scale the gradients so that their norm over all parameters is at most ``most``.

    Returns:
        The norm before scaling.

    Raises:
        NonFiniteGradients: If the norm is infinite or NaN.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
    if not math.isfinite(norm):
        raise NonFiniteGradients(
            f"the gradients are not finite (their norm is {norm}): the weights are not finite, or training diverged "
            "and needs a lower learning rate"
        )
    return norm


class NonFiniteGradients(ArithmeticError):
    """Raised before a step that would make weights infinite or NaN; the weights are as they were before the step."""
