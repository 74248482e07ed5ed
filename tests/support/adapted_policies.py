"""Policies that differ from others as training with adapters makes them differ."""

from __future__ import annotations

import copy
from typing import Any

import torch

ADAPTED = ("q_proj", "v_proj", "down_proj")


@torch.no_grad()
def adapted(model: Any, rank: int, size: float = 0.5, seed: int = 0) -> Any:
    """A copy of ``model`` whose projections differ by matrices of that rank."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in changed.named_parameters():
        if name.split(".")[-2] in ADAPTED:
            rows, columns = parameter.shape
            left = torch.randn(rows, rank, generator=generator)
            right = torch.randn(rank, columns, generator=generator)
            change = size * (left @ right) / (rows * columns) ** 0.5
            parameter.add_(change.to(parameter.dtype))
    return changed
