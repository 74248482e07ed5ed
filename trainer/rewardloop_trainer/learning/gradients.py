"""The gradients of a step before its optimizer takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def clip(parameters: Iterable[torch.Tensor], most: float) -> float:
    """Scale the gradients so that their norm over all parameters is at most ``most``; returns what it was.

    Raises `NonFiniteGradients`.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
    if not math.isfinite(norm):
        raise NonFiniteGradients(f"the norm of the gradients is {norm}, not finite")
    return norm


class NonFiniteGradients(RuntimeError):
    """The step would leave weights that are no numbers; they are as they were."""
