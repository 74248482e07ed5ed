"""Bounds the gradients of a step before the optimizer takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_, get_total_norm

from rewardloop_trainer.data.computing.shards import is_part, local


def clip(parameters: Iterable[torch.Tensor], most: float) -> float:
    """Scale the gradients so that their norm over all parameters is at most ``most``.

    Returns:
        The norm before scaling.

    Raises:
        NonFiniteGradients: If the norm is infinite or NaN.
    """
    norm = _clip_in_place(list(parameters), most)
    if not math.isfinite(norm):
        raise NonFiniteGradients(
            f"the gradients are not finite (their norm is {norm}): the weights are not finite, or training diverged "
            "and needs a lower learning rate"
        )
    return norm


def _clip_in_place(parameters: list[torch.Tensor], most: float) -> float:
    parts = [p for p in parameters if is_part(p)]
    if not parts:
        return float(clip_grad_norm_(parameters, most))
    held = [local(p.grad) for p in parts if p.grad is not None]
    squares = get_total_norm(held).double().square().cpu()
    dist.all_reduce(squares)
    replicated = [p.grad for p in parameters if p.grad is not None and not is_part(p)]
    norm = (squares + get_total_norm(replicated).double().square().cpu()).sqrt().item()
    scale = min(1.0, most / (norm + 1e-6))
    for gradient in (*held, *replicated):
        gradient.mul_(scale)
    return norm


class NonFiniteGradients(ArithmeticError):
    """Raised before a step that would make weights infinite or NaN; the weights are as they were before the step."""
